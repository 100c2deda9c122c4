//! Tests of the checker: histories made by hand, all orders of small ones, and long ones of a simulated
//! register that is right, or wrong in a known way.

mod brute;
mod files;
mod histories;
mod notation;
mod random;
mod rng;
mod service;
