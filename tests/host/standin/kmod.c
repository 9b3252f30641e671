/* SPDX-License-Identifier: Apache-2.0
 *
 * A stand-in for kmod on the host bed, where no module can really be loaded: it reads the module's real .modinfo, refuses
 * with the texts of the real programs, and on success makes the files under /sys/module, /proc/driver and /proc/devices
 * that the real modules would make.  The boot hook has laid writable layers there.  Dispatch is on argv[0], as in kmod.
 *
 * Test controls, all optional:
 *   /run/kmod.delay   "[VERB] SECONDS" lines: wait before acting
 *   /run/kmod.fail    "VERB MODULE TEXT" lines: fail with this text (MODULE may be *)
 *   /run/kmod.busy    module names (empty file: all): rmmod answers "is in use", and refcnt says 1
 *   /run/kmod.known   names that modprobe finds without a file
 *   /run/kmod.log     one JSON object a call: t (monotonic), seconds, pid, argv, rc, said
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <linux/netlink.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODULES "/sys/module"
#define PCI "/sys/bus/pci/devices"
#define DRIVER "/sys/bus/pci/drivers/nvidia"

static char said[2048];
static const char *verb;
static int lock_fd = -1;

static void say(const char *format, ...) {
  va_list arguments;
  size_t used = strlen(said);
  va_start(arguments, format);
  vsnprintf(said + used, sizeof said - used, format, arguments);
  va_end(arguments);
  fputs(said + used, stderr);
}

static char *slurp(const char *path) { /* a small text file; "" when absent */
  static char ring[8][16384];
  static int turn;
  char *text = ring[turn++ % 8];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t size = 0, got;
  while (fd >= 0 && (got = read(fd, text + size, sizeof ring[0] - 1 - size)) > 0) size += got;
  if (fd >= 0) close(fd);
  text[size] = 0;
  return text;
}

static char *line_of(const char *path) {
  char *text = slurp(path);
  text[strcspn(text, "\n")] = 0;
  return text;
}

static void put(const char *text, const char *format, ...) {
  char path[4096];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(path, sizeof path, format, arguments);
  va_end(arguments);
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
  if (fd < 0) return;
  ssize_t size = write(fd, text, strlen(text));
  if (size >= 0 && ftruncate(fd, size)) { /* in place: /proc/devices is a bound file */ }
  close(fd);
}

static int exists(const char *format, ...) {
  char path[4096];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(path, sizeof path, format, arguments);
  va_end(arguments);
  return access(path, F_OK) == 0;
}

static int unlink_each(const char *path, const struct stat *status, int kind, struct FTW *walk) {
  (void)status, (void)kind, (void)walk;
  return remove(path), 0;
}

static void remove_tree(const char *path) { nftw(path, unlink_each, 16, FTW_DEPTH | FTW_PHYS); }

static const char *plain(const char *name) { /* the kernel's spelling of a module name */
  static char ring[8][256];
  static int turn;
  char *out = ring[turn++ % 8];
  snprintf(out, 256, "%s", name);
  for (char *c = out; *c; c++)
    if (*c == '-') *c = '_';
  return out;
}

static int has_word(const char *text, const char *word) {
  size_t size = strlen(word);
  for (const char *at = text; (at = strstr(at, word)); at += size)
    if ((at == text || isspace(at[-1])) && (!at[size] || isspace(at[size]))) return 1;
  return 0;
}

/* ---- what is in the module file ---------------------------------------------------------------------------------- */

struct module {
  char name[256];
  const char *info;
  size_t size;
};

static const char *field(const struct module *m, const char *key) {
  size_t length = strlen(key);
  for (const char *at = m->info; at < m->info + m->size; at += strlen(at) + 1)
    if (!strncmp(at, key, length) && at[length] == '=') return at + length + 1;
  return "";
}

static int parse(const char *path, struct module *m) { /* 0, or an errno */
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (fd < 0) return errno;
  if (fstat(fd, &status)) return errno;
  char copy[4096];
  snprintf(copy, sizeof copy, "%s", path);
  snprintf(m->name, sizeof m->name, "%s", plain(basename(copy)));
  m->name[strcspn(m->name, ".")] = 0;
  if (status.st_size < (off_t)sizeof(Elf64_Ehdr)) return ENOEXEC;
  const char *map = mmap(NULL, status.st_size + 1, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (map == MAP_FAILED) return errno;
  const Elf64_Ehdr *head = (const void *)map;
  uint64_t size = status.st_size;
  if (memcmp(head->e_ident, ELFMAG, SELFMAG) || head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_type != ET_REL) return ENOEXEC;
  if (head->e_shoff > size || head->e_shoff + (uint64_t)head->e_shnum * sizeof(Elf64_Shdr) > size) return ENOEXEC;
  if (head->e_shstrndx >= head->e_shnum) return ENOEXEC;
  const Elf64_Shdr *sections = (const void *)(map + head->e_shoff), *names = &sections[head->e_shstrndx];
  if (names->sh_offset + names->sh_size > size) return ENOEXEC;
  for (int i = 0; i < head->e_shnum; i++) {
    const Elf64_Shdr *s = &sections[i];
    if (s->sh_name + sizeof ".modinfo" > names->sh_size || strcmp(map + names->sh_offset + s->sh_name, ".modinfo")) continue;
    if (s->sh_offset + s->sh_size > size || !s->sh_size || map[s->sh_offset + s->sh_size - 1]) return ENOEXEC;
    m->info = map + s->sh_offset;
    m->size = s->sh_size;
    if (*field(m, "name")) snprintf(m->name, sizeof m->name, "%s", plain(field(m, "name")));
    return 0;
  }
  return ENOEXEC;
}

/* ---- events: what the kernel would have announced, in the form udevd passes on ------------------------------------ */

static uint32_t murmur2(const char *text) {
  const uint32_t m = 0x5bd1e995;
  size_t left = strlen(text);
  uint32_t h = left;
  for (; left >= 4; text += 4, left -= 4) {
    uint32_t k;
    memcpy(&k, text, 4);
    k *= m;
    h = h * m ^ (k ^ k >> 24) * m;
  }
  if (left) {
    uint32_t k = 0;
    memcpy(&k, text, left);
    h = (h ^ k) * m;
  }
  h = (h ^ h >> 13) * m;
  return h ^ h >> 15;
}

static int event(const char *action, const char *devpath, const char *subsystem, int count, char **extra) {
  struct {
    char prefix[8];
    uint32_t magic, header, offset, length, subsystem, devtype, tag_high, tag_low;
  } head = {"libudev", htonl(0xfeedcafe), sizeof head, sizeof head, 0, htonl(murmur2(subsystem)), 0, 0, 0};
  char message[8192], path[4096];
  size_t size = sizeof head;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  size += sprintf(message + size, "ACTION=%s", action) + 1;
  size += sprintf(message + size, "DEVPATH=%s", devpath) + 1;
  size += sprintf(message + size, "SUBSYSTEM=%s", subsystem) + 1;
  size += sprintf(message + size, "SEQNUM=%lld", (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000) + 1;
  size += sprintf(message + size, "USEC_INITIALIZED=1") + 1;
  snprintf(path, sizeof path, "/sys%s/uevent", devpath);
  if (!strcmp(subsystem, "pci"))
    for (char *line = strtok(slurp(path), "\n"); line; line = strtok(NULL, "\n"))
      /* What `udevadm trigger` writes there at boot stays in a plain file, and is no property. */
      if (strchr(line, '=')) size += sprintf(message + size, "%s", line) + 1;
  for (int i = 0; i < count; i++) {
    size += sprintf(message + size, "%s", extra[i]) + 1;
    if (!strncmp(extra[i], "DEVTYPE=", 8)) head.devtype = htonl(murmur2(extra[i] + 8));
  }
  head.length = size - sizeof head;
  memcpy(message, &head, sizeof head);
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
  struct sockaddr_nl to = {.nl_family = AF_NETLINK, .nl_groups = 2}; /* the group udevd sends to */
  ssize_t sent = sendto(fd, message, size, 0, (struct sockaddr *)&to, sizeof to);
  int bad = sent < 0 && errno != ECONNREFUSED; /* refused: nobody listens */
  close(fd);
  return bad;
}

/* ---- the marks that a loaded module leaves ------------------------------------------------------------------------ */

static int count_holders(const char *name) {
  char path[512];
  int count = 0;
  snprintf(path, sizeof path, MODULES "/%s/holders", name);
  DIR *directory = opendir(path);
  for (struct dirent *entry; directory && (entry = readdir(directory));) count += entry->d_name[0] != '.';
  if (directory) closedir(directory);
  return count;
}

static int is_busy(const char *name) {
  if (access("/run/kmod.busy", F_OK)) return 0;
  const char *names = slurp("/run/kmod.busy");
  return !names[strspn(names, " \n")] || has_word(names, name);
}

static void refresh_refcnt(const char *name) {
  char text[16];
  snprintf(text, sizeof text, "%d\n", count_holders(name));
  put(text, MODULES "/%s/refcnt", name);
}

static int used_major(const char *listing, int major) {
  char wanted[16];
  snprintf(wanted, sizeof wanted, "%3d ", major);
  for (const char *line = listing; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL)
    if (!strncmp(line, wanted, strlen(wanted))) return 1;
  return 0;
}

static void register_character(const char *name, int major) { /* 0: a dynamic one, found as the kernel does */
  char *old = slurp("/proc/devices"), next[20000];
  char *blocks = strstr(old, "\nBlock devices:");
  if (!blocks) return;
  *blocks++ = 0;
  for (int i = 254; !major && i >= 234; i--)
    if (!used_major(old, i)) major = i;
  for (int i = 511; !major && i >= 384; i--)
    if (!used_major(old, i)) major = i;
  size_t length = strlen(old);
  if (length && old[length - 1] == '\n') old[length - 1] = 0;
  snprintf(next, sizeof next, "%s\n%3d %s\n\n%s", old, major, name, blocks);
  put(next, "/proc/devices");
}

static void unregister_character(const char *name) {
  char *old = slurp("/proc/devices"), next[20000] = "";
  for (char *line = old; *line;) {
    size_t length = strcspn(line, "\n");
    const char *space = memchr(line, ' ', length), *word = line;
    while (space && *word == ' ') word++;
    space = space ? memchr(word, ' ', line + length - word) : NULL;
    if (!(space && strlen(name) == (size_t)(line + length - space - 1) && !strncmp(space + 1, name, strlen(name))))
      strncat(next, line, length + (line[length] == '\n'));
    line += length + (line[length] == '\n');
  }
  put(next, "/proc/devices");
}

static const char *const CHARACTERS[][3] = {
    /* module, name, major */
    {"nvidia", "nvidia", "195"},    {"nvidia", "nvidiactl", "195"},   {"nvidia", "nvidia-caps", "0"},
    {"nvidia", "nvidia-nvlink", "0"}, {"nvidia_uvm", "nvidia-uvm", "0"}, {"nvidia_modeset", "nvidia-modeset", "195"},
};

static void characters(const char *module, int add) {
  for (size_t i = 0; i < sizeof CHARACTERS / sizeof *CHARACTERS; i++)
    if (!strcmp(CHARACTERS[i][0], module)) {
      if (add) register_character(CHARACTERS[i][1], atoi(CHARACTERS[i][2]));
      else unregister_character(CHARACTERS[i][1]);
    }
}

static int each_gpu(void (*act)(const char *slot, int minor)) { /* how many NVIDIA PCI devices there are */
  struct dirent **entries;
  int count = scandir(PCI, &entries, NULL, alphasort), found = 0;
  char path[512];
  for (int i = 0; i < count; i++) {
    snprintf(path, sizeof path, PCI "/%s/vendor", entries[i]->d_name);
    if (entries[i]->d_name[0] != '.' && !strcmp(line_of(path), "0x10de")) {
      if (act) act(entries[i]->d_name, found);
      found++;
    }
  }
  return found;
}

static void announce(const char *action, const char *slot, int count) {
  char path[512], real[4096], *driver[] = {"DRIVER=nvidia"};
  snprintf(path, sizeof path, PCI "/%s", slot);
  if (realpath(path, real)) event(action, real + 4, "pci", count, driver);
}

static void bind_gpu(const char *slot, int minor) {
  char path[512], target[512], text[1024];
  snprintf(path, sizeof path, PCI "/%s/driver", slot);
  if (symlink("../../../bus/pci/drivers/nvidia", path) && errno == EEXIST) return; /* another driver has it */
  snprintf(path, sizeof path, PCI "/%s", slot);
  ssize_t size = readlink(path, target, sizeof target - 1);
  target[size < 0 ? 0 : size] = 0;
  snprintf(path, sizeof path, DRIVER "/%s", slot);
  snprintf(text, sizeof text, "../%s", target);
  if (symlink(text, path)) { /* there already */ }
  snprintf(path, sizeof path, "/proc/driver/nvidia/gpus/%s", slot);
  mkdir(path, 0555);
  snprintf(text, sizeof text,
           "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 38\nGPU UUID: \t GPU-\?\?\?\?\?\?\?\?-\?\?\?\?-\?\?\?\?-\?\?\?\?-\?\?\?\?\?\?\?\?\?\?\?\?\n"
           "Video BIOS: \t \?\?.\?\?.\?\?.\?\?.\?\?\nBus Type: \t PCIe\nDMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\n"
           "Bus Location: \t %s\nDevice Minor: \t %d\nGPU Firmware: \t N/A\nGPU Excluded:\t No\n", slot, minor);
  put(text, "%s/information", path);
  announce("bind", slot, 1);
}

static void unbind_gpu(const char *slot, int minor) {
  char path[512], target[512];
  (void)minor;
  snprintf(path, sizeof path, PCI "/%s/driver", slot);
  ssize_t size = readlink(path, target, sizeof target - 1);
  target[size < 0 ? 0 : size] = 0;
  if (strcmp(basename(target), "nvidia")) return;
  unlink(path);
  snprintf(path, sizeof path, DRIVER "/%s", slot);
  unlink(path);
  announce("unbind", slot, 0);
}

static void load_nvidia(const struct module *m, int count, char **options) {
  char text[4096], *at = text;
  const char *version = field(m, "version");
  int open_flavour = strstr(field(m, "license"), "MIT") != NULL;
  mkdir("/proc/driver/nvidia", 0555);
  mkdir("/proc/driver/nvidia/gpus", 0555);
  mkdir("/proc/driver/nvidia-caps", 0555);
  put("config 1\nmonitor 2\n", "/proc/driver/nvidia-caps/mig-minors");
  snprintf(text, sizeof text, "NVRM version: NVIDIA UNIX %s  %s  %sWed Mar 25 15:26:15 UTC 2026\nGCC version:  stand-in\n",
           open_flavour ? "Open Kernel Module for x86_64" : "x86_64 Kernel Module", version,
           open_flavour ? "Release Build  (stand-in@bed)  " : "");
  put(text, "/proc/driver/nvidia/version");
  const char *const DEFAULTS[] = {"ModifyDeviceFiles=1", "DeviceFileUID=0", "DeviceFileGID=0", "DeviceFileMode=438"};
  for (size_t i = 0; i < 4; i++) {
    const char *value = strchr(DEFAULTS[i], '=') + 1;
    size_t length = value - DEFAULTS[i];
    for (int o = 0; o < count; o++)
      if (!strncmp(options[o], "NVreg_", 6) && !strncmp(options[o] + 6, DEFAULTS[i], length)) value = options[o] + 6 + length;
    at += snprintf(at, text + sizeof text - at, "%.*s: %ld\n", (int)length - 1, DEFAULTS[i], strtol(value, NULL, 0));
  }
  put(text, "/proc/driver/nvidia/params");
  mkdir(DRIVER, 0755);
  each_gpu(bind_gpu);
}

static void load(const struct module *m, int count, char **options) {
  char path[640], fresh[600], target[300];
  snprintf(fresh, sizeof fresh, MODULES "/.%s", m->name);
  remove_tree(fresh);
  mkdir(fresh, 0755);
  snprintf(path, sizeof path, "%s/holders", fresh);
  mkdir(path, 0755);
  snprintf(path, sizeof path, "%s/parameters", fresh);
  mkdir(path, 0755);
  if (*field(m, "version")) {
    snprintf(target, sizeof target, "%s\n", field(m, "version"));
    put(target, "%s/version", fresh);
  }
  if (*field(m, "srcversion")) {
    snprintf(target, sizeof target, "%s\n", field(m, "srcversion"));
    put(target, "%s/srcversion", fresh);
  }
  put("live\n", "%s/initstate", fresh);
  put("0\n", "%s/refcnt", fresh);
  put(strstr(field(m, "license"), "MIT") ? "O\n" : "PO\n", "%s/taint", fresh);
  for (int i = 0; i < count; i++) {
    const char *equals = strchr(options[i], '=');
    if (!equals || !strncmp(options[i], "NVreg_", 6)) continue; /* those have no file in sysfs */
    snprintf(target, sizeof target, "%s\n", equals + 1);
    put(target, "%s/parameters/%.*s", fresh, (int)(equals - options[i]), options[i]);
  }
  if (!strcmp(m->name, "nvidia")) load_nvidia(m, count, options);
  characters(m->name, 1);
  snprintf(path, sizeof path, MODULES "/%s", m->name);
  rename(fresh, path);
  char depends[1024];
  snprintf(depends, sizeof depends, "%s", field(m, "depends"));
  for (char *name = strtok(depends, ","); name; name = strtok(NULL, ",")) {
    if (!exists(MODULES "/%s/holders", plain(name))) continue; /* built in */
    snprintf(path, sizeof path, MODULES "/%s/holders/%s", plain(name), m->name);
    snprintf(target, sizeof target, "../../%s", m->name);
    if (symlink(target, path)) { /* there already */ }
    refresh_refcnt(plain(name));
  }
  snprintf(path, sizeof path, "/module/%s", m->name);
  event("add", path, "module", 0, NULL);
}

static void unload(const char *name) {
  char path[600];
  characters(name, 0);
  if (!strcmp(name, "nvidia")) {
    each_gpu(unbind_gpu);
    remove_tree(DRIVER);
    remove_tree("/proc/driver/nvidia");
    remove_tree("/proc/driver/nvidia-caps");
  }
  DIR *directory = opendir(MODULES);
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    snprintf(path, sizeof path, MODULES "/%s/holders/%s", entry->d_name, name);
    if (entry->d_name[0] != '.' && !unlink(path)) refresh_refcnt(entry->d_name);
  }
  if (directory) closedir(directory);
  snprintf(path, sizeof path, "/module/%s", name);
  event("remove", path, "module", 0, NULL);
  snprintf(path, sizeof path, MODULES "/%s", name);
  remove_tree(path);
}

/* ---- the verbs ---------------------------------------------------------------------------------------------------- */

static void change(void (*act)(void *), void *data) {
  /* The kernel finishes what it began even when the caller is killed: so a child of another cgroup and session does it. */
  pid_t child = fork();
  if (child == 0) {
    char pid[16];
    snprintf(pid, sizeof pid, "%d", getpid());
    int fd = open("/sys/fs/cgroup/init.scope/cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, pid, strlen(pid)) < 0) { /* in a container: the caller's cgroup must do */ }
    setsid();
    act(data);
    _exit(0);
  }
  while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
}

struct loading {
  const struct module *module;
  int count;
  char **options;
};

static void act_load(void *data) {
  struct loading *l = data;
  load(l->module, l->count, l->options);
}

static void act_unload(void *data) { unload(data); }

static const char *told_to_fail(const char *name) { /* the text that /run/kmod.fail has for this verb and module */
  static char text[256];
  char v[64], m[256], copy[16384];
  snprintf(copy, sizeof copy, "%s", slurp("/run/kmod.fail"));
  for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n"))
    if (sscanf(line, "%63s %255s %255[^\n]", v, m, text) == 3 && !strcmp(v, verb) && (!strcmp(m, "*") || !strcmp(plain(m), name)))
      return text;
  return NULL;
}

static const char *insert(const struct module *m, int count, char **options) { /* NULL, or the real program's text */
  const char *text = told_to_fail(m->name);
  if (text) return text;
  const char *vermagic = field(m, "vermagic"), *release = line_of("/proc/sys/kernel/osrelease");
  size_t length = strcspn(vermagic, " ");
  if (length != strlen(release) || strncmp(vermagic, release, length)) return "Invalid module format";
  if (exists(MODULES "/%s", m->name)) return "File exists";
  char depends[1024];
  snprintf(depends, sizeof depends, "%s", field(m, "depends"));
  for (char *name = strtok(depends, ","); name; name = strtok(NULL, ","))
    if (!exists(MODULES "/%s", plain(name))) return "Unknown symbol in module";
  if (!strcmp(m->name, "nvidia") && !each_gpu(NULL)) return "No such device";
  struct loading l = {m, count, options};
  change(act_load, &l);
  return NULL;
}

static int insmod(int argc, char **argv) {
  struct module m = {.name = ""};
  while (argc > 1 && argv[1][0] == '-') argc--, argv++;
  if (argc < 2) return say("insmod: ERROR: missing filename.\n"), 1;
  int error = parse(argv[1], &m);
  if (error == ENOEXEC) return say("insmod: ERROR: could not insert module %s: Invalid module format\n", argv[1]), 1;
  if (error) return say("insmod: ERROR: could not load module %s: %s\n", argv[1], strerror(error)), 1;
  const char *text = insert(&m, argc - 2, argv + 2);
  if (text) return say("insmod: ERROR: could not insert module %s: %s\n", argv[1], text), 1;
  return 0;
}

static int rmmod_one(const char *given) {
  const char *name = plain(given), *text;
  if (!exists(MODULES "/%s", name)) return say("%s: ERROR: Module %s is not currently loaded\n", verb, name), 1;
  if (!exists(MODULES "/%s/initstate", name)) return say("%s: ERROR: Module %s is builtin.\n", verb, name), 1;
  if (count_holders(name)) {
    char path[512];
    snprintf(path, sizeof path, MODULES "/%s/holders", name);
    say("%s: ERROR: Module %s is in use by:", verb, name);
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
      if (entry->d_name[0] != '.') say(" %s", entry->d_name);
    if (directory) closedir(directory);
    return say("\n"), 1;
  }
  if (is_busy(name)) {
    put("1\n", MODULES "/%s/refcnt", name);
    return say("%s: ERROR: Module %s is in use\n", verb, name), 1;
  }
  if ((text = told_to_fail(name))) return say("%s: ERROR: could not remove module %s: %s\n", verb, name, text), 1;
  change(act_unload, (void *)name);
  return 0;
}

static int rmmod(int argc, char **argv) {
  int rc = 0;
  for (int i = 1; i < argc; i++)
    if (argv[i][0] != '-') rc |= rmmod_one(argv[i]);
  return rc;
}

static char found[4096];
static const char *wanted_file;

static int match_file(const char *path, const struct stat *status, int kind, struct FTW *walk) {
  (void)status;
  if (kind != FTW_F) return 0;
  char name[256];
  snprintf(name, sizeof name, "%s", plain(path + walk->base));
  char *dot = strrchr(name, '.');
  if (!dot || strcmp(dot, ".ko")) return 0;
  *dot = 0;
  if (strcmp(name, wanted_file)) return 0;
  snprintf(found, sizeof found, "%s", path);
  return 1;
}

static int modprobe_one(const char *given, int quiet, int count, char **options) {
  const char *name = plain(given), *release = line_of("/proc/sys/kernel/osrelease");
  char directory[512], path[4096], depends[1024];
  if (exists(MODULES "/%s", name)) return 0;
  struct module m = {.name = ""};
  snprintf(directory, sizeof directory, "/lib/modules/%s", release);
  wanted_file = name;
  found[0] = 0;
  nftw(directory, match_file, 16, 0);
  if (!found[0] && has_word(slurp("/run/kmod.known"), name)) {
    static char info[300];
    snprintf(m.name, sizeof m.name, "%s", name);
    m.info = info, m.size = 0;
    struct loading l = {&m, count, options};
    change(act_load, &l);
    return 0;
  }
  if (!found[0]) {
    if (!quiet) say("modprobe: FATAL: Module %s not found in directory %s\n", given, directory);
    return 1;
  }
  snprintf(path, sizeof path, "%s", found);
  int error = parse(path, &m);
  const char *text = error ? (error == ENOEXEC ? "Invalid module format" : strerror(error)) : NULL;
  if (!text) {
    snprintf(depends, sizeof depends, "%s", field(&m, "depends"));
    char *rest = depends, *dependency;
    while ((dependency = strsep(&rest, ",")))
      if (*dependency) modprobe_one(dependency, 1, 0, NULL);
    text = insert(&m, count, options);
  }
  if (text) return say("modprobe: ERROR: could not insert '%s': %s\n", name, text), 1;
  return 0;
}

static int modprobe(int argc, char **argv) {
  int removing = 0, quiet = 0, all = 0, dry = 0, rc = 0, first = 1;
  for (; first < argc && argv[first][0] == '-'; first++) {
    const char *option = argv[first];
    removing |= !strcmp(option, "--remove") || (option[1] != '-' && strchr(option, 'r'));
    quiet |= !strcmp(option, "--quiet") || (option[1] != '-' && strchr(option, 'q'));
    all |= !strcmp(option, "--all") || (option[1] != '-' && strchr(option, 'a'));
    dry |= !strcmp(option, "--dry-run") || (option[1] != '-' && strchr(option, 'n'));
    if (!strcmp(option, "-d") || !strcmp(option, "-C") || !strcmp(option, "-S")) first++;
  }
  if (first >= argc) return say("modprobe: FATAL: Missing module name\n"), 1;
  if (dry) return 0;
  if (!removing && !all) return modprobe_one(argv[first], quiet, argc - first - 1, argv + first + 1);
  for (int i = first; i < argc; i++) {
    if (!removing) rc |= modprobe_one(argv[i], quiet, 0, NULL);
    else if (exists(MODULES "/%s", plain(argv[i]))) rc |= rmmod_one(argv[i]);
    else if (!quiet) rc = 1, say("modprobe: FATAL: Module %s is not currently loaded\n", plain(argv[i]));
  }
  return rc;
}

static int modinfo(int argc, char **argv) {
  const char *only = NULL;
  int rc = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "-F") && i + 1 < argc) { only = argv[++i]; continue; }
    if (!strncmp(argv[i], "--field=", 8)) { only = argv[i] + 8; continue; }
    if (argv[i][0] == '-') continue;
    struct module m = {.name = ""};
    if (parse(argv[i], &m)) { say("modinfo: ERROR: Module %s not found.\n", argv[i]), rc = 1; continue; }
    if (!only) printf("filename:       %s\n", argv[i]);
    for (const char *at = m.info; at < m.info + m.size; at += strlen(at) + 1) {
      const char *equals = strchr(at, '=');
      if (equals && only && strlen(only) == (size_t)(equals - at) && !strncmp(at, only, equals - at)) puts(equals + 1);
      if (equals && !only) printf("%.*s:%*s%s\n", (int)(equals - at), at, (int)(15 - (equals - at) > 1 ? 15 - (equals - at) : 1), "", equals + 1);
    }
  }
  return rc;
}

static int lsmod(void) {
  puts("Module                  Size  Used by");
  struct dirent **entries;
  int count = scandir(MODULES, &entries, NULL, alphasort);
  for (int i = 0; i < count; i++) {
    const char *name = entries[i]->d_name;
    char path[512];
    if (name[0] == '.' || !exists(MODULES "/%s/initstate", name)) continue;
    printf("%-19s %8d  %d", name, 16384, count_holders(name));
    snprintf(path, sizeof path, MODULES "/%s/holders", name);
    DIR *directory = opendir(path);
    const char *separator = " ";
    for (struct dirent *entry; directory && (entry = readdir(directory));)
      if (entry->d_name[0] != '.') printf("%s%s", separator, entry->d_name), separator = ",";
    if (directory) closedir(directory);
    puts("");
  }
  return 0;
}

/* ---- controls and the log ----------------------------------------------------------------------------------------- */

static void wait_if_told(void) {
  char copy[16384], v[64];
  double seconds;
  snprintf(copy, sizeof copy, "%s", slurp("/run/kmod.delay"));
  for (char *line = strtok(copy, "\n"); line; line = strtok(NULL, "\n")) {
    int all = sscanf(line, "%lf", &seconds) == 1;
    if (all || (sscanf(line, "%63s %lf", v, &seconds) == 2 && !strcmp(v, verb))) {
      struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
      nanosleep(&pause, NULL);
      return;
    }
  }
}

static char *quoted(char *at, char *end, const char *text) {
  *at++ = '"';
  for (; *text && at < end - 8; text++) {
    if (*text == '"' || *text == '\\') *at++ = '\\', *at++ = *text;
    else if ((unsigned char)*text < 32) at += sprintf(at, "\\u%04x", *text);
    else *at++ = *text;
  }
  *at++ = '"';
  return at;
}

static double monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

static void record(double begun, int argc, char **argv, int rc) {
  char line[16384], *at = line, *end = line + sizeof line - 4096;
  at += sprintf(at, "{\"t\": %.6f, \"seconds\": %.6f, \"pid\": %d, \"argv\": [", begun, monotonic() - begun, getpid());
  at = quoted(at, end, verb);
  for (int i = 1; i < argc && at < end; i++) *at++ = ',', *at++ = ' ', at = quoted(at, end, argv[i]);
  at += sprintf(at, "], \"rc\": %d, \"said\": ", rc);
  at = quoted(at, line + sizeof line - 8, said);
  at += sprintf(at, "}\n");
  int fd = open("/run/kmod.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd >= 0 && write(fd, line, at - line) < 0) { /* a log that cannot be written stops nothing */ }
  if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
  double begun = monotonic();
  verb = basename(argv[0]);
  if (!strcmp(verb, "kmod") && argc > 1) argc--, argv++, verb = argv[0];
  if (!strcmp(verb, "lsmod") || !strcmp(verb, "list")) return lsmod();
  if (!strcmp(verb, "modinfo")) return modinfo(argc, argv);
  if (!strcmp(verb, "uevent")) { /* uevent ACTION SYSPATH SUBSYSTEM [KEY=VALUE...] */
    if (argc < 4) return 2;
    return event(argv[1], strncmp(argv[2], "/sys/", 5) ? argv[2] : argv[2] + 4, argv[3], argc - 4, argv + 4);
  }
  wait_if_told();
  lock_fd = open("/run/kmod.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd >= 0) flock(lock_fd, LOCK_EX);
  umask(022);
  int rc = 1;
  if (!strcmp(verb, "insmod")) rc = insmod(argc, argv);
  else if (!strcmp(verb, "rmmod")) rc = rmmod(argc, argv);
  else if (!strcmp(verb, "modprobe")) rc = modprobe(argc, argv);
  else if (!strcmp(verb, "depmod")) rc = 0;
  else say("kmod: stand-in without the command %s\n", verb);
  record(begun, argc, argv, rc);
  return rc;
}
