pub use next::{futures, optional, stream};
