//! Kubernetes objects as Culvert reads them: thin types that keep what they do not know, manifests with errors that
//! name file, document and field, the directory source, the settings of the mesh, and the rule of enrolment.

pub mod directory;
pub mod encoding;
pub mod enrolment;
pub mod kinds;
pub mod manifest;
pub mod mesh_config;
pub mod object;
pub mod objects;
mod reading;
pub mod reference;
pub mod schema;
pub mod settings;
pub mod types;

pub use directory::Directory;
pub use kinds::{Kind, Scope};
pub use manifest::{Manifest, ManifestError, ManifestErrors, Skipped};
pub use object::{FieldError, Metadata, Object, ObjectKey, OwnerReference, read};
pub use objects::Objects;
