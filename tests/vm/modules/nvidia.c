// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Stand-in for nvidia.ko: the name, files, char device and refusals that a host daemon can see, and no hardware access.
 *
 * Like the real module it makes its files in /proc first and takes them away again when there is no card (ENODEV).
 * Like the real one it creates no device node: user space has to mknod, and an open holds a reference on the module.
 */
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#define NV_MAJOR 195
#define NV_CONTROL_MINOR 255
#define NV_MODESET_MINOR 254
#define NV_MAX_CARDS 32
#define PCI_VENDOR_NVIDIA 0x10de
#define CLASS_MASK 0xffff00

/* The one parameter that hosts commonly set; accepted so that configured parameters can be seen to arrive. */
static int NVreg_ModifyDeviceFiles = 1;
module_param(NVreg_ModifyDeviceFiles, int, 0);

static struct proc_dir_entry *proc_dir, *proc_gpus;
static DEFINE_IDA(minors);
static unsigned long present; /* bit N: the card with minor N is bound */

struct card {
	struct pci_dev *pci;
	int minor;
};

/* nvidia-uvm and nvidia-modeset call this, so that modinfo says they depend on nvidia. */
int nvidia_stand_in_cards(void);
int nvidia_stand_in_cards(void)
{
	return hweight_long(present);
}
EXPORT_SYMBOL(nvidia_stand_in_cards);

static int version_show(struct seq_file *out, void *unused)
{
	seq_printf(out, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (stand-in)\n",
		   NV_VERSION);
	seq_printf(out, "GCC version:  gcc version %s\n", __VERSION__);
	return 0;
}

static int params_show(struct seq_file *out, void *unused)
{
	seq_printf(out, "ModifyDeviceFiles: %d\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n",
		   NVreg_ModifyDeviceFiles);
	return 0;
}

static int information_show(struct seq_file *out, void *unused)
{
	struct card *card = out->private;

	seq_puts(out, "Model: \t\t NVIDIA stand-in\n");
	seq_printf(out, "IRQ:   \t\t %d\n", card->pci->irq);
	seq_puts(out, "GPU UUID: \t GPU-????????-????-????-????-????????????\n");
	seq_puts(out, "Bus Type: \t PCIe\n");
	seq_printf(out, "Bus Location: \t %s\n", pci_name(card->pci));
	seq_printf(out, "Device Minor: \t %d\n", card->minor);
	seq_puts(out, "GPU Firmware: \t N/A\n");
	seq_puts(out, "GPU Excluded:\t No\n");
	return 0;
}

static int nv_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct card *card = devm_kzalloc(&pci->dev, sizeof(*card), GFP_KERNEL);
	struct proc_dir_entry *dir;

	if (!card)
		return -ENOMEM;
	card->pci = pci;
	card->minor = ida_alloc_max(&minors, NV_MAX_CARDS - 1, GFP_KERNEL);
	if (card->minor < 0)
		return card->minor;
	dir = proc_mkdir(pci_name(pci), proc_gpus);
	if (!dir || !proc_create_single_data("information", 0444, dir, information_show, card)) {
		ida_free(&minors, card->minor);
		return -ENOMEM;
	}
	set_bit(card->minor, &present);
	pci_set_drvdata(pci, card);
	pci_info(pci, "nvidia stand-in: bound as minor %d\n", card->minor);
	return 0;
}

static void nv_remove(struct pci_dev *pci)
{
	struct card *card = pci_get_drvdata(pci);

	clear_bit(card->minor, &present);
	remove_proc_subtree(pci_name(pci), proc_gpus);
	ida_free(&minors, card->minor);
}

static const struct pci_device_id nv_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_NVIDIA, PCI_ANY_ID), .class = 0x030000, .class_mask = CLASS_MASK },
	{ PCI_DEVICE(PCI_VENDOR_NVIDIA, PCI_ANY_ID), .class = 0x030200, .class_mask = CLASS_MASK },
	{ }
};
MODULE_DEVICE_TABLE(pci, nv_ids);

static struct pci_driver nv_driver = {
	.name = "nvidia",
	.id_table = nv_ids,
	.probe = nv_probe,
	.remove = nv_remove,
};

static int nv_open(struct inode *inode, struct file *file)
{
	unsigned int minor = iminor(inode);

	if (minor == NV_CONTROL_MINOR)
		return 0;
	return minor < NV_MAX_CARDS && test_bit(minor, &present) ? 0 : -ENODEV;
}

/* .owner makes every open file hold the module, as the real one does: rmmod then says it is in use. */
static const struct file_operations nv_files = {
	.owner = THIS_MODULE,
	.open = nv_open,
};

static int __init nv_init(void)
{
	int rc = -ENOMEM;

#ifdef NV_FAULT_REFUSES
	/* As a driver does that knows neither this card nor another. */
	pr_err("NVRM: The NVIDIA GPU is not supported by driver %s (stand-in).\n", NV_VERSION);
	return -EIO;
#endif
#ifdef NV_FAULT_PANICS
	panic("NVRM: driver %s takes the host down (stand-in)", NV_VERSION);
#endif
	proc_dir = proc_mkdir("driver/nvidia", NULL);
	if (!proc_dir)
		return rc;
	proc_gpus = proc_mkdir("gpus", proc_dir);
	if (!proc_gpus || !proc_create_single("version", 0444, proc_dir, version_show) ||
	    !proc_create_single("params", 0444, proc_dir, params_show))
		goto no_proc;
	rc = pci_register_driver(&nv_driver);
	if (rc)
		goto no_proc;
	if (!present) {
		pr_err("NVRM: No NVIDIA GPU found.\n");
		rc = -ENODEV;
		goto no_card;
	}
	/* Minors below the two control minors: nvidia-modeset has 254 of the same major for itself. */
	rc = __register_chrdev(NV_MAJOR, 0, NV_MODESET_MINOR, "nvidia", &nv_files);
	if (rc)
		goto no_card;
	rc = __register_chrdev(NV_MAJOR, NV_CONTROL_MINOR, 1, "nvidiactl", &nv_files);
	if (rc)
		goto no_control;
	pr_info("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  %s  (stand-in)\n", NV_VERSION);
	return 0;

no_control:
	__unregister_chrdev(NV_MAJOR, 0, NV_MODESET_MINOR, "nvidia");
no_card:
	pci_unregister_driver(&nv_driver);
no_proc:
	proc_remove(proc_dir);
	return rc;
}

static void __exit nv_exit(void)
{
	__unregister_chrdev(NV_MAJOR, NV_CONTROL_MINOR, 1, "nvidiactl");
	__unregister_chrdev(NV_MAJOR, 0, NV_MODESET_MINOR, "nvidia");
	pci_unregister_driver(&nv_driver);
	proc_remove(proc_dir);
}

module_init(nv_init);
module_exit(nv_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_VERSION);
MODULE_DESCRIPTION("nvidiad test stand-in for nvidia");
