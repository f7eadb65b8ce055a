//! What must be nowhere: a text that is looked for in every file.

use std::{fs, path::Path};

/// The files below a folder in which this text is, by name. A file that is gone when it is read has nothing in it.
///
/// # Panics
/// Where a folder cannot be listed.
pub fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for item in fs::read_dir(folder).expect("the folder can be listed") {
        let path = item.expect("its entries can be read").path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if memchr::memmem::find(&fs::read(&path).unwrap_or_default(), text.as_bytes()).is_some() {
            found.push(path.display().to_string());
        }
    }
    found
}
