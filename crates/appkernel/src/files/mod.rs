//! Files: the guest's descriptors and paths, and the host's files behind them.

pub(crate) mod control;
pub(crate) mod copy;
pub(crate) mod epoll;
pub(crate) mod io;
pub(crate) mod names;
pub(crate) mod open;
mod place;
pub(crate) mod poll;
mod proc;
pub(crate) mod status;
mod table;
pub(crate) mod xattr;

pub(crate) use place::{AT_FDCWD, Entry, Last, Object, host_path};
pub(crate) use proc::{is_ours, shown_path};
pub(crate) use table::{Cloexec, FileTable};
