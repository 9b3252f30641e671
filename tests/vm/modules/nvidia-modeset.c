// SPDX-License-Identifier: MIT OR GPL-2.0
/* Stand-in for nvidia-modeset.ko: depends on nvidia and answers at minor 254 of nvidia's major. */
#include <linux/fs.h>
#include <linux/module.h>

#define NV_MAJOR 195
#define NV_MODESET_MINOR 254

int nvidia_stand_in_cards(void);

static const struct file_operations modeset_files = {
	.owner = THIS_MODULE,
};

static int __init modeset_init(void)
{
	pr_info("nvidia-modeset: stand-in loaded, %d card(s)\n", nvidia_stand_in_cards());
	return __register_chrdev(NV_MAJOR, NV_MODESET_MINOR, 1, "nvidia-modeset", &modeset_files);
}

static void __exit modeset_exit(void)
{
	__unregister_chrdev(NV_MAJOR, NV_MODESET_MINOR, 1, "nvidia-modeset");
}

module_init(modeset_init);
module_exit(modeset_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_VERSION);
MODULE_DESCRIPTION("nvidiad test stand-in for nvidia-modeset");
