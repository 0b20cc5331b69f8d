//! What differs from processor to processor.
pub(crate) mod x86_64;
