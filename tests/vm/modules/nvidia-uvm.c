// SPDX-License-Identifier: MIT OR GPL-2.0
/* Stand-in for nvidia-uvm.ko: depends on nvidia and has a char device whose major the kernel chooses. */
#include <linux/fs.h>
#include <linux/module.h>

#define UVM_MINORS 2 /* nvidia-uvm and nvidia-uvm-tools */

int nvidia_stand_in_cards(void);

static int uvm_major;

static const struct file_operations uvm_files = {
	.owner = THIS_MODULE,
};

static int __init uvm_init(void)
{
	uvm_major = __register_chrdev(0, 0, UVM_MINORS, "nvidia-uvm", &uvm_files);
	if (uvm_major < 0)
		return uvm_major;
	pr_info("nvidia-uvm: stand-in loaded, major %d, %d card(s)\n", uvm_major, nvidia_stand_in_cards());
	return 0;
}

static void __exit uvm_exit(void)
{
	__unregister_chrdev(uvm_major, 0, UVM_MINORS, "nvidia-uvm");
}

module_init(uvm_init);
module_exit(uvm_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_VERSION);
MODULE_DESCRIPTION("nvidiad test stand-in for nvidia-uvm");
