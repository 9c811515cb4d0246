//! What applies, and that nothing of it is lost.
