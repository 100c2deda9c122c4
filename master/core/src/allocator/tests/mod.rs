//! The engine against a model that is slow and obviously right, and cases that people asked for.

mod cases;
mod histories;
mod reference;
mod small;
