//! Address spaces in which a supervisor runs code: what `include/pvx.h` declares and `man/pvx.3` describes.
//!
//! [`abi`] has the structures, [`failure`] what becomes of an error; [`space`], [`memory`], [`context`], [`run`] and [`planner`] have the
//! functions, in the header's order.

mod abi;
mod context;
mod failure;
mod memory;
mod planner;
mod run;
mod space;
