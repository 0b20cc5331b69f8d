// Sets a timer, and another when it is told to: prints what the second one answers, and what is left of the first.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

int main(void)
{
    struct itimerval first = {{0, 0}, {1000000, 0}}, second = {{0, 0}, {5, 0}};
    char go[2];
    setvbuf(stdout, NULL, _IONBF, 0);
    setitimer(ITIMER_REAL, &first, NULL);
    puts("ready");
    if (read(0, go, 2) != 2)
        return 1;
    int answer = setitimer(ITIMER_REAL, &second, NULL), error = errno;
    getitimer(ITIMER_REAL, &second);
    printf("%s, then %s\n", answer == 0 ? "set" : strerrorname_np(error),
           second.it_value.tv_sec > 900000 ? "the first goes on" : "it is lost");
    return 0;
}
