;; A component that imports an interface that no host gives.
(component
  (import "evil:host/door@1.0.0" (instance (export "open" (func (result u32))))))
