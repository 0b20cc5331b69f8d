//! The resident code, the memory through which it talks to the supervisor, and the processes it lives in.
//!
//! The processes, from the top:
//! - the *keeper*, a child of the supervisor that executes a tiny program of nothing but the resident code. It is
//!   the parent of all others and reaps them, so that guests never disturb the supervisor's own wait(2) or SIGCHLD;
//! - the *templates*, children of the keeper with an empty address space, ready to be copied: one whose service task may
//!   make every call, and a copy of it that is confined to calls about memory ([`filter`]);
//! - one process for each space, a copy of a template (or of another space), with a *service* task that executes
//!   system calls for the supervisor, and an *executor* task for each context that runs.
//!
//! Each dies with its parent (`PR_SET_PDEATHSIG`).

pub(crate) mod arena;
pub(crate) mod code;
pub(crate) mod filter;
pub(crate) mod handoff;
pub(crate) mod keeper;
pub(crate) mod layout;
pub(crate) mod life;
pub(crate) mod machine;
pub(crate) mod passage;
pub(crate) mod region;
pub(crate) mod service;
pub(crate) mod setup;
pub(crate) mod signature;
pub(crate) mod task;
