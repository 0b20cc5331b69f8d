//! What the fuzz targets (`fuzz/` in the repository) reach of the insides of this crate.

pub use crate::attach::fuzzing::filter_allows;
pub use crate::engine::fuzzing::{Mailbox, executor_filter};
