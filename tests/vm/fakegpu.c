// SPDX-License-Identifier: Apache-2.0
/*
 * An LD_PRELOAD library that gives a stock Debian qemu-system-x86_64 one more device: `-device fake-nvidia`, a PCI card
 * with NVIDIA's vendor id and the BARs of a data-centre GPU, so that a real driver binds to it (and computes nothing).
 *
 * No device of QEMU has a settable vendor id. But Debian builds QEMU with loadable modules, hence the functions that a
 * device needs are exported by the executable; their declarations are repeated here and no QEMU header is needed.
 * Where a field lies inside QEMU's class structures is found by looking at known devices, so it works across versions
 * (7.2 and 10.0 were tried).
 *
 * Environment, all hexadecimal: FAKE_NV_DEVICE=20b5 FAKE_NV_SUBSYS=1533 FAKE_NV_BOOT0=170000a1 FAKE_NV_BOOT42=170a1000;
 * FAKE_NV_TRACE=1 prints every access.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define MIB (1u << 20)
#define PCI_INTERRUPT_PIN 0x3d
#define REGISTER_BOOT0 0x0   /* "which chip are you": the driver reads these two first */
#define REGISTER_BOOT42 0xa00
#define BAR_64BIT_PREFETCH 0xc

struct interface {
	const char *type;
};

/* QEMU's TypeInfo (include/qom/object.h), stable over the versions tried. */
struct type_info {
	const char *name, *parent;
	size_t instance_size, instance_align;
	void (*instance_init)(void *), (*instance_post_init)(void *), (*instance_finalize)(void *);
	bool abstract;
	size_t class_size;
	void (*class_init)(void *, void *), (*class_base_init)(void *, void *);
	void *class_data;
	const struct interface *interfaces;
};

/* QEMU's MemoryRegionOps (include/exec/memory.h). */
struct region_ops {
	uint64_t (*read)(void *, uint64_t, unsigned);
	void (*write)(void *, uint64_t, uint64_t, unsigned);
	void *read_with_attrs, *write_with_attrs;
	int endianness;
	struct {
		unsigned min, max;
		bool unaligned;
		void *accepts;
	} valid;
	struct {
		unsigned min, max;
		bool unaligned;
	} impl;
};

/* Weak: the library is also preloaded into the programs that QEMU starts, which have none of these. */
#define WEAK __attribute__((weak))
extern void *type_register_static(const struct type_info *) WEAK;
extern void *object_class_by_name(const char *) WEAK;
extern void memory_region_init_io(void *region, void *owner, const struct region_ops *, void *opaque, const char *name,
				  uint64_t size) WEAK;
extern void pci_register_bar(void *device, int number, uint8_t type, void *region) WEAK;
extern uint32_t pci_default_read_config(void *device, uint32_t address, int length) WEAK;
extern const char vmstate_pci_device[] WEAK;

static unsigned setting(const char *name, unsigned otherwise)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 16) : otherwise;
}

static void trace(const char *what, void *opaque, uint64_t address, unsigned size, uint64_t value)
{
	if (getenv("FAKE_NV_TRACE"))
		fprintf(stderr, "fake-nvidia: %s %s %llx/%u = %llx\n", opaque ? "registers" : "memory", what,
			(unsigned long long)address, size, (unsigned long long)value);
}

/* `opaque` is set for BAR 0, the registers; the other BARs read as zero. */
static uint64_t bar_read(void *opaque, uint64_t address, unsigned size)
{
	uint64_t value = 0;

	if (opaque && address == REGISTER_BOOT0)
		value = setting("FAKE_NV_BOOT0", 0x170000a1);
	if (opaque && address == REGISTER_BOOT42)
		value = setting("FAKE_NV_BOOT42", 0x170a1000);
	trace("read", opaque, address, size, value);
	return value;
}

static void bar_write(void *opaque, uint64_t address, uint64_t value, unsigned size)
{
	trace("write", opaque, address, size, value);
}

static const struct region_ops bar_ops = {
	.read = bar_read,
	.write = bar_write,
	.valid = { .min = 1, .max = 8 },
	.impl = { .min = 1, .max = 8 },
};

static void card_realize(void *device, void **error)
{
	static const struct {
		int number;
		uint8_t type;
		uint64_t size;
	} bars[] = {
		{ 0, 0, 16 * MIB },
		{ 1, BAR_64BIT_PREFETCH, 256 * MIB },
		{ 3, BAR_64BIT_PREFETCH, 32 * MIB },
	};

	(void)error;
	for (size_t i = 0; i < sizeof(bars) / sizeof(bars[0]); i++) {
		void *region = calloc(1, 8192); /* a MemoryRegion is well below this */

		memory_region_init_io(region, device, &bar_ops, bars[i].number ? NULL : device, "fake-nvidia-bar",
				      bars[i].size);
		pci_register_bar(device, bars[i].number, bars[i].type, region);
	}
}

/* Interrupt pin A: the real driver refuses a card without an interrupt. */
static uint32_t card_read_config(void *device, uint32_t address, int length)
{
	uint32_t value = pci_default_read_config(device, address, length);

	if (address <= PCI_INTERRUPT_PIN && address + length > PCI_INTERRUPT_PIN) {
		unsigned shift = 8 * (PCI_INTERRUPT_PIN - address);

		value = (value & ~(0xffu << shift)) | 1u << shift;
	}
	return value;
}

/* Read memory that may not be mapped. */
static bool peek(const void *from, void *to, size_t length)
{
	struct iovec local = { to, length }, remote = { (void *)from, length };

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)length;
}

/* Where DeviceClass.vmsd lies: the word of e1000's class that points at a structure that starts with its name. */
static size_t vmsd_offset(void)
{
	const char *class = object_class_by_name("e1000");

	for (size_t i = 64; class && i < 400; i += sizeof(void *)) {
		const void *vmsd, *name;
		char text[6];

		memcpy(&vmsd, class + i, sizeof(vmsd));
		if (peek(vmsd, &name, sizeof(name)) && peek(name, text, sizeof(text)) && !memcmp(text, "e1000", 6))
			return i;
	}
	return 0;
}

/* Where PCIDeviceClass.vendor_id lies: pci-testdev is known to be 1b36:0005. */
static size_t vendor_offset(void)
{
	const uint8_t *class = object_class_by_name("pci-testdev");

	for (size_t i = 64; class && i < 1024; i += 2) {
		uint16_t ids[2];

		memcpy(ids, class + i, sizeof(ids));
		if (ids[0] == 0x1b36 && ids[1] == 0x0005)
			return i;
	}
	return 0;
}

static void card_class_init(void *class, void *data)
{
	/* vendor, device, revision (and a hole), class, subsystem vendor, subsystem */
	const uint16_t ids[6] = { 0x10de, setting("FAKE_NV_DEVICE", 0x20b5), 0x00a1,
				  0x0302, 0x10de, setting("FAKE_NV_SUBSYS", 0x1533) };
	void (*realize)(void *, void **) = card_realize;
	uint32_t (*read_config)(void *, uint32_t, int) = card_read_config;
	const void *vmstate = vmstate_pci_device;
	size_t vendor = vendor_offset(), vmsd = vmsd_offset();
	uint8_t *bytes = class;

	(void)data;
	if (!vendor || !vmsd || !vmstate) {
		fprintf(stderr, "fake-nvidia: this QEMU's class layout is not known\n");
		exit(1);
	}
	/* The four pointers before vendor_id: realize, exit, config_read, config_write. */
	memcpy(bytes + vendor - 4 * sizeof(void *), &realize, sizeof(realize));
	memcpy(bytes + vendor - 2 * sizeof(void *), &read_config, sizeof(read_config));
	memcpy(bytes + vendor, ids, sizeof(ids));
	/* A plain PCI device's state is all there is to migrate; with it a machine with a card can be frozen. */
	memcpy(bytes + vmsd, &vmstate, sizeof(vmstate));
}

static const struct interface interfaces[] = { { "pci-express-device" }, { "conventional-pci-device" }, { NULL } };

static const struct type_info card = {
	.name = "fake-nvidia",
	.parent = "pci-device",
	.class_init = card_class_init,
	.interfaces = interfaces,
};

__attribute__((constructor)) static void register_card(void)
{
	if (type_register_static)
		type_register_static(&card);
}
