//! One disk of a virtual machine, in a process of its own: a vhost-user-blk back end.
//!
//! From the bottom up: `request` makes sense of a guest's descriptor chain and does nothing else; `disk` is the image;
//! `device` carries a request out on a disk; `queue` does that for all chains of a virtqueue; `backend` connects queues to
//! vhost-user; `server` accepts connections. `config` is what the guest reads of the device, `spin` how a worker waits,
//! `complain` keeps a guest from filling the log, `control` takes
//! commands from whoever started the process, `announce` tells a front end of a new size, `inherit` takes descriptors over,
//! `options` is the command line. `confined` is the life of the process that `bulkhead run` starts for each disk.
//!
//! # Confinement
//!
//! The order is: take descriptors over, open and lock the image (only with `--path`), start the control thread, accept one
//! connection, start its threads. After [`server::serve`] has accepted, nothing is opened, no socket is made and no thread
//! is started; a device that serves one connection (`--fd`) thus needs, from the moment its descriptors are there:
//!
//! | system call | who, and why |
//! |---|---|
//! | preadv, pwritev | workers: requests, straight between image and guest memory |
//! | pread64, pwrite64 | workers: requests that O_DIRECT does not take as they are |
//! | fdatasync | workers: flush |
//! | fallocate | workers: discard, write zeroes |
//! | ftruncate | workers, qcow2 only: the image grows |
//! | epoll_wait, read | workers: the kick that ends a sleep |
//! | write | workers: the call and error eventfds; control: answers; anyone: log lines on standard error |
//! | futex | locks between a worker and the socket's thread; joining threads |
//! | clock_gettime | waiting and batching (a real system call only where the vDSO has none) |
//! | recvmsg, sendmsg | the socket's thread: vhost-user |
//! | sendto | control: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG |
//! | mmap, munmap | the memory table (shared, read and write, never executable); thread stacks and the heap |
//! | mprotect, madvise, brk | the heap and thread stacks; never executable |
//! | epoll_ctl, epoll_create1, eventfd2 | one epoll set and two eventfds for each worker |
//! | fcntl | F_GETFD, F_DUPFD_CLOEXEC: the connection's second descriptor; F_GETFL: the image's mode |
//! | getsockopt, getsockname, newfstatat (fstat) | telling the socket of announcements from the connection |
//! | statx, lseek | the image's kind (once, when it is taken over) and size (again after `resize`) |
//! | accept4 | the one connection |
//! | close, shutdown | replaced descriptors; the end of the connection |
//! | clone3, clone, rseq, set_robust_list, sigaltstack, prctl, gettid, sched_getaffinity, rt_sigprocmask | starting threads |
//! | getrandom | hash tables |
//! | restart_syscall | a sleep that SIGSTOP and SIGCONT interrupted |
//! | exit, exit_group, rt_sigreturn | ending |
//!
//! The list is what `strace` shows of this crate's tests after accept4, and what the libraries do on paths that these do
//! not reach. Reads and writes are synchronous. io_uring was measured against them and is not used: see `queue`.

pub mod announce;
pub mod backend;
pub mod complain;
pub mod config;
pub mod confined;
pub mod control;
pub mod device;
pub mod disk;
pub mod inherit;
pub mod options;
pub mod queue;
pub mod request;
pub mod server;
pub mod spin;
pub mod vring;
