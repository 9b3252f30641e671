/* SPDX-License-Identifier: Apache-2.0
 *
 * bin/nvidiad of the bundle: starts the Python of the tree that it lies in, with the C library of that tree.
 *
 * Linked statically, so that it needs nothing of the host, not even a shell. The libraries are named on the dynamic
 * linker's command line and not in the environment, because programs of the host that nvidiad starts would inherit it.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

static void fail(const char *what, const char *why)
{
	const char *words[] = { "nvidiad: '", what, "' ", why, "\n" };

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (write(2, words[i], strlen(words[i])) < 0)
			break;
	_exit(127);
}

static char *below(const char *tree, const char *folder, const char *name)
{
	size_t size = strlen(tree) + strlen(folder) + strlen(name) + 1;
	char *path = malloc(size);

	if (!path)
		fail(tree, "has no memory to start in");
	strcpy(path, tree);
	strcat(path, folder);
	strcat(path, name);
	return path;
}

int main(int argc, char **argv)
{
	static char self[PATH_MAX + 1];
	char *name, *folder, **words, *linker;
	int count = 0;

	/* Where /proc is not mounted, the kernel has told with which path it was started. */
	if (readlink("/proc/self/exe", self, PATH_MAX) < 0 &&
	    !realpath((const char *)getauxval(AT_EXECFN), self))
		fail(argc ? argv[0] : "nvidiad", "cannot find where it lies");
	name = strrchr(self, '/');
	if (!name)
		fail(self, "does not lie in a tree");
	*name++ = '\0';
	folder = strrchr(self, '/');
	if (!folder)
		fail(self, "does not lie in a tree");
	*folder = '\0';

	words = calloc(argc + 10, sizeof(*words));
	if (!words)
		fail(self, "has no memory to start in");
	/* A link to the dynamic linker: its name is what ps and the journal call the process. */
	linker = below(self, "/libexec/", name);
	words[count++] = linker;
	/* Else it would look into the host's cache for what it does not find here. */
	words[count++] = "--inhibit-cache";
	words[count++] = "--library-path";
	words[count++] = below(self, "/lib", "");
	words[count++] = below(self, "/libexec/", "python3");
	words[count++] = "-ISB";
	words[count++] = below(self, "/lib/start/", name);
	for (int i = 1; i < argc; i++)
		words[count++] = argv[i];
	execv(linker, words);
	fail(linker, strerror(errno));
}
