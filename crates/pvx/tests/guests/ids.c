// Who a program is, and what it may become. Prints what each call answers and who the program is then.
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <linux/capability.h>
#include <unistd.h>

static void show(const char *call, int first, int second, int third, long answer)
{
    int error = errno;
    unsigned ids[6];
    getresuid(ids, ids + 1, ids + 2);
    getresgid(ids + 3, ids + 4, ids + 5);
    printf("%s %d %d %d: %ld %s; %u %u %u, %u %u %u\n", call, first, second, third, answer, answer < 0 ? strerrorname_np(error) : "",
           ids[0], ids[1], ids[2], ids[3], ids[4], ids[5]);
}

int main(void)
{
    int own = getuid(), ids[] = {-1, own, own + 1};
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("%d\n", getuid() == geteuid() && getgid() == getegid());
    for (int a = 0; a < 3; a++) {
        int x = ids[a];
        show("setuid", x, 0, 0, syscall(SYS_setuid, x));
        show("setgid", x, 0, 0, syscall(SYS_setgid, x));
        show("setfsuid", x, 0, 0, syscall(SYS_setfsuid, x));
        show("setfsgid", x, 0, 0, syscall(SYS_setfsgid, x));
        for (int b = 0; b < 3; b++) {
            int y = ids[b];
            show("setreuid", x, y, 0, syscall(SYS_setreuid, x, y));
            show("setregid", x, y, 0, syscall(SYS_setregid, x, y));
            for (int c = 0; c < 3; c++) {
                int z = ids[c];
                show("setresuid", x, y, z, syscall(SYS_setresuid, x, y, z));
                show("setresgid", x, y, z, syscall(SYS_setresgid, x, y, z));
            }
        }
    }
    unsigned groups[64], count = getgroups(64, groups);
    show("setgroups", count, 0, 0, syscall(SYS_setgroups, count, groups));
    groups[count] = own + 1;
    show("setgroups", count + 1, 0, 0, syscall(SYS_setgroups, count + 1, groups));
    show("setgroups", 1 << 17, 0, 0, syscall(SYS_setgroups, 1 << 17, groups));
    show("setgroups", -1, 0, 0, syscall(SYS_setgroups, -1, groups));

    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2], more[2];
    show("capget", 0, 0, 0, syscall(SYS_capget, &header, sets));
    for (int half = 0; half < 2; half++)
        printf("%x %x %x\n", sets[half].effective, sets[half].permitted, sets[half].inheritable);
    show("capset", 0, 0, 0, syscall(SYS_capset, &header, sets));
    memcpy(more, sets, sizeof more);
    more[0].effective ^= 1;
    show("capset", 1, 0, 0, syscall(SYS_capset, &header, more));
    header.version = 1;
    show("capset", 2, 0, 0, syscall(SYS_capset, &header, sets));
    printf("%x\n", header.version);
    return 0;
}
