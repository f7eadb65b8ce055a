;; A core module without a component type: built without the SDK or wit-bindgen.
(module
  (memory (export "memory") 1)
  (func (export "handle") (result i32) i32.const 0))
