// Ways to name the own directory in /proc: what a path says is not where it leads.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char spellings[64][256];
static int spellings_count;

static void spell(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(spellings[spellings_count++], sizeof spellings[0], format, arguments);
    va_end(arguments);
}

// Descriptors of / , /proc and /proc/self, and links to them in the current directory.
static int root, proc, own;

static void make_spellings(void)
{
    int pid = getpid();
    root = open("/", O_RDONLY | O_DIRECTORY);
    proc = open("/proc", O_PATH | O_DIRECTORY);
    own = open("/proc/self", O_RDONLY | O_DIRECTORY);
    unlink("to-proc");
    unlink("to-self");
    unlink("to-fd");
    unlink("here");
    if (symlink("/proc", "to-proc") || symlink("to-proc/self", "to-self") || symlink("/dev/fd/../.", "to-fd") ||
        symlink("/proc/self/cwd", "here"))
        exit(1);
    spell("/proc/self");
    spell("/proc/thread-self");
    spell("/proc/%d", pid);
    spell("//proc//self");
    spell("/proc/./self/.");
    spell("/proc/self/../self");
    spell("/proc/sys/../self");
    spell("/proc/self/task/%d", pid);
    spell("/proc/%d/task/../task/%d", pid, pid);
    spell("/proc/self/task/%d/../..", pid);
    spell("/proc/self/root/proc/self");
    spell("/proc/self/cwd/to-self");
    spell("here/to-proc/./self");
    spell("to-proc/thread-self");
    spell("to-self");
    spell("to-fd");
    spell("/dev/fd/..");
    spell("/proc/self/fd/%d/self", proc);
    spell("/dev/fd/%d/self", proc);
    spell("/proc/self/fd/./%d/proc/self", root);
    spell("/proc/self/fd/%d", own);
    spell("/proc/self/fdinfo/../fd/%d/task/..", own);
    spell("/proc/net/../");
}
