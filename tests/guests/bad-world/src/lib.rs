//! A component that exports nothing: it is neither a scheduler nor an executor nor a task, and its upload must be
//! refused with the export that is missing.

/// Something to compile; it is not reachable from outside the component.
pub fn nothing() -> u32 {
    std::hint::black_box(0)
}
