//! The reconciler: manifest to revision to compiled modules to snapshot.
