/* bulkhead-init is the first process of every Machine. It starts the Machine's command, collects
 * the processes that lose their parents, passes signals on to the command, and ends as the
 * command ends. It is no file of the image: the sandbox starts it from the host's, read-only.
 *
 *	bulkhead-init run DIRECTORY COMMAND...     start the command and stay its parent
 *	bulkhead-init tty DIRECTORY COMMAND...     the same, on a terminal
 *	bulkhead-init become DIRECTORY COMMAND...  become the command
 *	bulkhead-init exec DIRECTORY COMMAND...    become a command that runs beside the first
 *	bulkhead-init exec DIRECTORY bulkhead-init:listens    write the tables of TCP sockets
 *
 * Descriptor 3 is where it says why the command did not start: a word, an error number and a
 * path. It closes when the command has started. Package warden/runsc reads that. */
#define _GNU_SOURCE
#include "sys.h"

enum { REPORT = 3, PATH_SIZE = 4096 };

static char **env;

/* report says why nothing was started, and ends this process. */
static void report(const char *word, int err, const char *path)
{
	char b[PATH_SIZE + 64], digits[12];
	size_t n = 0, d = sizeof digits, l = len(path);
	int code = err == ENOENT ? 127 : 126;
	for (const char *w = word; *w; w++)
		b[n++] = *w;
	b[n++] = ' ';
	do
		digits[--d] = '0' + err % 10;
	while (err /= 10);
	while (d < sizeof digits)
		b[n++] = digits[d++];
	b[n++] = ' ';
	if (l > PATH_SIZE)
		l = PATH_SIZE;
	memcpy(b + n, path, l);
	S3(SYS_write, REPORT, b, n + l);
	quit(code);
}

/* explain finds what is missing of a file that exists and cannot be executed. */
static void explain(const char *path, int err)
{
	static char head[PATH_SIZE], name[PATH_SIZE];
	for (int depth = 0; depth < 4; depth++) {
		long fd = S3(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		long n = fd < 0 ? fd : S4(SYS_pread64, fd, head, sizeof head - 1, 0);
		const char *word = 0;
		if (n <= 2)
			break;
		head[n] = 0;
		if (head[0] == '#' && head[1] == '!') {
			char *at = head + 2, *to = name;
			while (*at == ' ' || *at == '\t')
				at++;
			while (*at && *at != ' ' && *at != '\t' && *at != '\n')
				*to++ = *at++;
			*to = 0;
			word = "interpreter";
		} else {
			Elf64_Ehdr *e = (Elf64_Ehdr *)head;
			Elf64_Phdr p;
			if (n < (long)sizeof *e || head[0] != 0x7f || head[1] != 'E' || head[EI_CLASS] != ELFCLASS64)
				break;
			for (int i = 0; i < e->e_phnum && i < 64 && !word; i++) {
				if (S4(SYS_pread64, fd, &p, sizeof p, e->e_phoff + i * sizeof p) != sizeof p)
					break;
				if (p.p_type != PT_INTERP)
					continue;
				long l = S4(SYS_pread64, fd, name, p.p_filesz < PATH_SIZE ? p.p_filesz : PATH_SIZE - 1, p.p_offset);
				name[l < 0 ? 0 : l] = 0;
				word = "loader";
			}
		}
		S1(SYS_close, fd);
		if (!word || !name[0])
			break;
		long no = S3(SYS_faccessat, AT_FDCWD, name, 1 /* X_OK */);
		if (no)
			report(word, -no, name);
		path = name;
	}
	report("command", err == ENOENT ? ENOEXEC : err, path);
}

/* These are inits: they want to be process 1, and do all that this one does. */
static int is_init(const char *name)
{
	static const char *const names[] = {
		"init", "tini", "tini-static", "docker-init", "dumb-init", "catatonit", "s6-svscan",
		"runit", "runit-init", "openrc-init", "my_init", 0,
	};
	for (int i = 0; names[i]; i++)
		if (same(name, names[i]))
			return 1;
	return 0;
}

/* resolved gives the name of the file that path leads to. */
static const char *resolved(const char *path)
{
	static char link[32] = "/proc/self/fd/", target[PATH_SIZE];
	long fd = S3(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC), n;
	char *at = link + 14, digits[12];
	int d = 0;
	if (fd < 0)
		return base(path);
	n = fd;
	do
		digits[d++] = '0' + n % 10;
	while (n /= 10);
	while (d)
		*at++ = digits[--d];
	*at = 0;
	n = S4(SYS_readlinkat, AT_FDCWD, link, target, sizeof target - 1);
	S1(SYS_close, fd);
	if (n <= 0)
		return base(path);
	target[n] = 0;
	return base(target);
}

/* search finds the command as a shell does: in PATH unless its name has a slash. */
static const char *search(const char *name)
{
	static char path[PATH_SIZE];
	const char *dirs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	int err = ENOENT;
	for (const char *c = name; *c; c++)
		if (*c == '/')
			return name;
	for (char **e = env; *e; e++) {
		const char *a = *e, *b = "PATH=";
		while (*b && *a == *b)
			a++, b++;
		if (!*b)
			dirs = a;
	}
	for (;;) {
		size_t n = 0, l = len(name);
		while (dirs[n] && dirs[n] != ':')
			n++;
		if (n + l + 2 <= sizeof path) {
			memcpy(path, dirs, n);
			if (n)
				path[n++] = '/';
			memcpy(path + n, name, l + 1);
			long no = S3(SYS_faccessat, AT_FDCWD, path, 1 /* X_OK */);
			long fd = no ? -1 : S3(SYS_openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
			if (!no && fd < 0)
				return path;
			if (fd >= 0)
				S1(SYS_close, fd);
			if (no == -EACCES)
				err = EACCES;
		}
		while (*dirs && *dirs != ':')
			dirs++;
		if (!*dirs++)
			report("command", err, name);
	}
}

/* become executes the command in place of this process. */
static void become(const char *path, char **argv)
{
	long err = -S3(SYS_execve, path, argv, env);
	if (S3(SYS_faccessat, AT_FDCWD, path, 0 /* F_OK */) == 0)
		explain(path, err);
	report("command", err, path);
}

/* terminal makes a terminal and returns its two ends. */
static int terminal(int *inner)
{
	char name[32] = "/dev/pts/", *at = name + 9, digits[12];
	int n = 0, d = 0, unlocked = 0;
	long outer = S3(SYS_openat, AT_FDCWD, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (outer < 0 || S3(SYS_ioctl, outer, TIOCSPTLCK, &unlocked) || S3(SYS_ioctl, outer, TIOCGPTN, &n))
		report("terminal", outer < 0 ? -outer : EIO, "/dev/ptmx");
	do
		digits[d++] = '0' + n % 10;
	while (n /= 10);
	while (d)
		*at++ = digits[--d];
	*at = 0;
	struct winsize size = { .ws_row = 24, .ws_col = 80 };
	S3(SYS_ioctl, outer, TIOCSWINSZ, &size);
	long in = S3(SYS_openat, AT_FDCWD, name, O_RDWR | O_NOCTTY);
	if (in < 0)
		report("terminal", -in, name);
	*inner = in;
	return outer;
}

/* copy passes on what the terminal shows, and reports whether there may be more. */
static int copy(int from)
{
	static char b[16384];
	long n = S3(SYS_read, from, b, sizeof b);
	if (n == -EINTR || n == -EAGAIN)
		return 1;
	for (long at = 0; at < n;) {
		long w = S3(SYS_write, 1, b + at, n - at);
		if (w < 0 && w != -EINTR)
			return 0;
		at += w > 0 ? w : 0;
	}
	return n > 0;
}

/* end ends this process as the command ended. */
static void end(int status)
{
	if (!WIFSIGNALED(status))
		quit(WEXITSTATUS(status));
	int n = WTERMSIG(status);
	sigs set = SIG(n);
	S4(SYS_rt_sigprocmask, SIG_UNBLOCK, &set, 0, sizeof set);
	S2(SYS_kill, S1(SYS_getpid, 0), n);
	quit(128 + n);
}

/* attend is the life of this process. */
static void attend(int child, int signals, int outer)
{
	struct pollfd p[2] = { { .fd = signals, .events = POLLIN }, { .fd = outer, .events = POLLIN } };
	int status = 0, ended = 0;
	while (!ended) {
		if (S5(SYS_ppoll, p, 2, 0, 0, 0) < 0)
			continue;
		if (p[1].revents && !copy(outer))
			p[1].fd = -1;
		if (!p[0].revents)
			continue;
		struct signalfd_siginfo i;
		if (S3(SYS_read, signals, &i, sizeof i) != sizeof i)
			continue;
		if (i.ssi_signo != SIGCHLD) {
			S2(SYS_kill, child, i.ssi_signo);
			continue;
		}
		for (;;) {
			int s;
			long pid = S4(SYS_wait4, -1, &s, WNOHANG, 0);
			if (pid <= 0)
				break;
			if (pid == child)
				status = s, ended = 1;
		}
	}
	/* What the command wrote before it ended. Others may keep the terminal open. */
	while (p[1].fd >= 0) {
		struct timespec now = { 0, 0 };
		if (S5(SYS_ppoll, p + 1, 1, &now, 0, 0) <= 0 || !copy(outer))
			break;
	}
	end(status);
}

/* start starts the command and attends to it. */
static void start(const char *path, char **argv, int tty)
{
	sigs all = ~0ULL, old;
	int inner = -1, outer = tty ? terminal(&inner) : -1;
	S4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof all);
	long signals = S4(SYS_signalfd4, -1, &all, sizeof all, SFD_CLOEXEC);
	long child = S5(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (child == 0) {
		if (tty) {
			S1(SYS_setsid, 0);
			S3(SYS_ioctl, inner, TIOCSCTTY, 0);
			for (int fd = 0; fd < 3; fd++)
				S3(SYS_dup3, inner, fd, 0);
			S1(SYS_close, inner);
		} else {
			S2(SYS_setpgid, 0, 0); /* its signals to its own group do not come back */
		}
		S4(SYS_rt_sigprocmask, SIG_SETMASK, &old, 0, sizeof old);
		become(path, argv);
	}
	if (child < 0 || signals < 0)
		report("process", child < 0 ? -child : -signals, path);
	S1(SYS_close, REPORT);
	if (inner >= 0)
		S1(SYS_close, inner);
	/* A list of processes shows the command once. */
	for (char **a = argv - 2; *a; a++)
		memset(*a, 0, len(*a));
	attend(child, signals, outer);
}

/* write_out writes a file to the standard output. */
static void write_out(const char *path)
{
	static char b[16384];
	long fd = S3(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC), n;
	while (fd >= 0 && (n = S3(SYS_read, fd, b, sizeof b)) > 0)
		for (long at = 0; at < n;) {
			long w = S3(SYS_write, 1, b + at, n - at);
			if (w < 0)
				quit(1);
			at += w;
		}
	S1(SYS_close, fd);
}

__attribute__((used)) void begin(long *stack)
{
	int argc = stack[0];
	char **argv = (char **)(stack + 1);
	env = argv + argc + 1;
	if (argc < 4)
		quit(64);
	S3(SYS_fcntl, REPORT, F_SETFD, FD_CLOEXEC);
	const char *mode = argv[1];
	int exec = same(mode, "exec");
	long no = S1(SYS_chdir, argv[2]);
	if (no)
		report("directory", -no, argv[2]);
	argv += 3;
	if (exec && same(argv[0], "bulkhead-init:listens")) {
		S1(SYS_close, REPORT);
		write_out("/proc/net/tcp");
		write_out("/proc/net/tcp6");
		quit(0);
	}
	const char *path = search(argv[0]);
	if (!exec) {
		const char *name = resolved(path);
		if (same(name, "systemd"))
			report("systemd", ENOSYS, path);
		int tty = same(mode, "tty");
		if (tty || (same(mode, "run") && !is_init(base(path)) && !is_init(name))) {
			S2(SYS_prctl, PR_SET_NAME, "bulkhead-init");
			start(path, argv, tty);
		}
	}
	become(path, argv);
}
