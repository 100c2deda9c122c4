//! Version 1 of a scheduler that is upgraded under load; see `book` for what it does.

mod book;
mod format1;
mod records1;

tessera_sdk::scheduler!(book::Book<format1::One>, state_version = 1);
