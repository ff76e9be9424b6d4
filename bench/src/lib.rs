//! Speed and memory, as ratios against references in the same run.
