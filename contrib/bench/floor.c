/* The least that a zone can cost: namespaces, id maps, a root of binds, a pivot, an exec, and the way back.
 *
 *   floor boot ROOT PIDFILE    a container of sleep(1) with the host's /usr; returns when it has been exec'ed
 *   floor exec PIDFILE         true(1) in it
 *   floor halt PIDFILE         kill it, and see it gone
 *
 * No network, no limits, no records, nothing undone after a failure: a measure, not a program to use.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BASE = 1 << 30, COUNT = 65536 };
#define ALL (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP)

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) err(1, "%s", path);
    close(fd);
}

static void mounted(const char *from, const char *to, const char *type, unsigned long flags, const char *data) {
    if (mount(from, to, type, flags, data)) err(1, "mount %s", to);
}

static void inside(const char *root, int go) {
    char byte, path[4096];
    if (read(go, &byte, 1) != 1) _exit(1);
    if (setresgid(0, 0, 0) || setresuid(0, 0, 0)) err(1, "ids");
    mounted(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    mounted("floor", root, "tmpfs", MS_NOSUID, "mode=755");
    if (chdir(root)) err(1, "%s", root);
    const char *folders[] = {"usr", "proc", "dev", "tmp", "sys", "etc"};
    for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++) mkdir(folders[i], 0755);
    if (symlink("usr/bin", "bin") || symlink("usr/lib", "lib") || symlink("usr/lib64", "lib64")) err(1, "symlink");
    mounted("/usr", "usr", NULL, MS_BIND | MS_REC, NULL);
    mounted("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mounted("dev", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k");
    mkdir("dev/pts", 0755);
    mounted("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
    const char *nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
    for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        char to[64];
        snprintf(to, sizeof to, "dev/%s", nodes[i]);
        snprintf(path, sizeof path, "/dev/%s", nodes[i]);
        close(open(to, O_CREAT | O_WRONLY, 0666));
        mounted(path, to, NULL, MS_BIND, NULL);
    }
    if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/")) err(1, "pivot_root");
    sethostname("floor", 5);
    setsid();
    char *words[] = {"/usr/bin/sleep", "infinity", NULL}, *environment[] = {"PATH=/usr/bin", NULL};
    execve(words[0], words, environment);
    err(1, "%s", words[0]);
}

static int boot(const char *root, const char *note) {
    int go[2], gone[2];
    if (pipe2(go, O_CLOEXEC) || pipe2(gone, O_CLOEXEC)) err(1, "pipe");
    struct clone_args arguments = {.flags = ALL | CLONE_NEWUSER, .exit_signal = SIGCHLD};
    pid_t pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0) err(1, "clone3");
    if (pid == 0) {
        close(gone[0]);
        inside(root, go[0]);
    }
    close(gone[1]);
    char path[64], text[64];
    snprintf(text, sizeof text, "0 %d %d\n", BASE, COUNT);
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    put(path, text);
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    put(path, text);
    if (write(go[1], "g", 1) != 1) err(1, "pipe");
    char byte;
    if (read(gone[0], &byte, 1) != 0) errx(1, "the container failed"); /* end of file: exec'ed, or dead */
    if (waitpid(pid, NULL, WNOHANG)) errx(1, "the container died");
    FILE *file = fopen(note, "w");
    if (!file) err(1, "%s", note);
    fprintf(file, "%d\n", pid);
    return fclose(file);
}

static pid_t noted(const char *note) {
    int pid = 0;
    FILE *file = fopen(note, "r");
    if (!file || fscanf(file, "%d", &pid) != 1) err(1, "%s", note);
    fclose(file);
    return pid;
}

static int execute(pid_t target) {
    int fd = syscall(SYS_pidfd_open, target, 0);
    if (fd < 0 || setns(fd, ALL | CLONE_NEWUSER)) err(1, "setns");
    pid_t pid = fork();
    if (pid == 0) {
        if (setresgid(0, 0, 0) || setresuid(0, 0, 0)) err(1, "ids");
        execl("/usr/bin/true", "true", NULL);
        err(1, "true");
    }
    int status;
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

static int halt(pid_t target) {
    struct pollfd ended = {.fd = syscall(SYS_pidfd_open, target, 0), .events = POLLIN};
    kill(target, SIGKILL);
    poll(&ended, 1, 10000);
    return 0;
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "boot")) return boot(words[2], words[3]);
    if (count == 3 && !strcmp(words[1], "exec")) return execute(noted(words[2]));
    if (count == 3 && !strcmp(words[1], "halt")) return halt(noted(words[2]));
    errx(2, "usage: floor boot ROOT PIDFILE | exec PIDFILE | halt PIDFILE");
}
