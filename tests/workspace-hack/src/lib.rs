//! Carries no code. Its manifest lists the features on which every build of the workspace
//! agrees; every host crate depends on it, so that none compiles a dependency differently.
