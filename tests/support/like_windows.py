"""Run a script without what Python on Windows does not have, so that code that needs it fails here, too.

    python like_windows.py script.py arguments

Only the script, the plugin and Meta's sam3 package go without; on Windows itself, nothing changes.
"""

import builtins
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path

OURS = ("__main__", "infer_segment_anything_3", "sam3", "testbed")  # beginnings of names of modules
MODULES = frozenset(
    ("crypt", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
)
NAMES = {
    os: (
        "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown chroot confstr ctermid eventfd fchdir fchmod fchown fork "
        "forkpty fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid "
        "getuid getxattr initgroups killpg lchown listxattr lockf major memfd_create minor mkfifo mknod nice "
        "openpty pathconf pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev "
        "readv register_at_fork removexattr sched_getaffinity sched_setaffinity sched_yield sendfile setegid "
        "seteuid setgid setgroups setpgid setpriority setsid setuid setxattr statvfs sync sysconf tcgetpgrp "
        "tcsetpgrp ttyname uname wait wait3 wait4 waitid writev"
    ),
    signal: (
        "SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP SIGTSTP SIGTTIN "
        "SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH alarm getitimer pause pthread_kill pthread_sigmask "
        "setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo"
    ),
}


def hide_posix(*packages):
    """Hide the modules and names above from all modules whose names start with one of ``packages``.

    Other packages keep them, because they look at the platform: NumPy, for example, calls ``os.uname`` on Linux.
    """
    import_module = builtins.__import__

    def hidden_from(namespace):
        return (namespace or {}).get("__name__", "").startswith(packages)

    def import_visible(name, globals=None, locals=None, fromlist=(), level=0):  # noqa: A002
        if level == 0 and name.partition(".")[0] in MODULES and hidden_from(globals):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, globals, locals, fromlist, level)

    builtins.__import__ = import_visible
    for module, names in NAMES.items():
        values = {name: vars(module).pop(name) for name in names.split() if hasattr(module, name)}

        def find_hidden(name, module=module, values=values):
            if name not in values or hidden_from(sys._getframe(1).f_globals):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return values[name]

        module.__getattr__ = find_hidden  # called for names that the module does not have


def refuse_links():
    """Refuse symbolic links to everyone; few users of Windows have the right to make them."""

    def refuse(source, target, *_, **__):
        raise OSError(1, "A required privilege is not held by the client", source, None, target)

    os.symlink = refuse


def main():
    hide_posix(*OURS)
    for package in OURS:  # files in the encoding of the machine, which python -X warn_default_encoding reports
        warnings.filterwarnings("error", category=EncodingWarning, module=package)
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
