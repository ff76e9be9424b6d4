//! Who is asking, and may they: pure decisions.
