//! Mistakes in the use of `tower-redlock`, and what the compiler says to them: see `mistakes/`. A
//! crate of its own, so that few others have to be built for it.
