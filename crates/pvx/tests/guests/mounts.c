// A new /proc, a bound one, and a bound directory of the process that becomes the supervisor. One line per claim.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    static const char *directories[] = {"new/self", "new/thread-self", "new/%d", "bound/self", "bound/%d", "self"};
    static const char *files[] = {"mem", "maps", "environ", "fd/3", "root/etc/passwd", "exe"};
    printf("the own one is there: %d\n", open("/proc/self/maps", O_RDONLY) >= 0);
    for (int directory = 0; directory < 6; directory++) {
        for (int file = 0; file < 6; file++) {
            char path[64], all[128];
            snprintf(path, sizeof path, directories[directory], getpid());
            snprintf(all, sizeof all, "%s/%s", path, files[file]);
            printf("%s is refused: %d\n", all, open(all, O_RDONLY) == -1 && open(all, O_PATH) == -1);
        }
    }
    return 0;
}
