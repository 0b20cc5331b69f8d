//! System calls in words: which kinds of arguments each has, what the constants are called, and what the records look
//! like that calls leave in memory. [`Tracer`](crate::Tracer) shows calls with it, `pvx call` reads and shows them.

mod constants;
mod names;
mod records;
mod table;

pub(crate) use names::{describe_open, signal_name};
pub use {
    constants::{constant, constant_names},
    names::{Names, describe_bits, error, name_of_signal, open_flags},
    records::{Field, FieldValue, Record, SIGACTION, Shape},
    table::{Kind, kinds, returns_address},
};
