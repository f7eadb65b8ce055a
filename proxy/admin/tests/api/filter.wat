;; The smallest filter: every request goes to the next one.
(component
  (import "beamline:edge/http@0.1.0" (instance $http
    (export "request-head" (type (sub resource)))
    (type $field (record (field "name" string) (field "value" (list u8))))
    (export "field" (type (eq $field)))))
  (alias export $http "request-head" (type $head))
  (alias export $http "field" (type $field))
  (import "beamline:edge/verdicts@0.1.0" (instance $verdicts
    (alias outer 1 $field (type $http-field))
    (export "field" (type $field (eq $http-field)))
    (type $route-record (record
      (field "upstream" string)
      (field "path" (option string))
      (field "host" (option string))
      (field "timeout-ms" (option u32))))
    (export "route" (type $route (eq $route-record)))
    (type $response-record (record
      (field "status" u16)
      (field "headers" (list $field))
      (field "body" (list u8))))
    (export "response" (type $response (eq $response-record)))
    (type $enqueue-record (record
      (field "upstream" string)
      (field "ordering-key" (option string))
      (field "delay-ms" (option u64))
      (field "expiry-ms" (option u64))))
    (export "enqueue" (type $enqueue (eq $enqueue-record)))
    (type $verdict-variant (variant
      (case "next")
      (case "route" $route)
      (case "respond" $response)
      (case "enqueue" $enqueue)
      (case "read-body")))
    (export "verdict" (type (eq $verdict-variant)))))
  (alias export $verdicts "verdict" (type $verdict))
  (core func $drop-head (canon resource.drop $head))
  (core module $filter
    (import "host" "drop-head" (func $drop-head (param i32)))
    (memory (export "memory") 1)
    ;; A verdict lies at address 0, where memory is zero: `next`.
    (func (export "handle") (param $request i32) (result i32)
      (call $drop-head (local.get $request))
      (i32.const 0)))
  (core instance $running (instantiate $filter
    (with "host" (instance (export "drop-head" (func $drop-head))))))
  (func $handle (param "request" (borrow $head)) (result $verdict)
    (canon lift (core func $running "handle") (memory (core memory $running "memory"))))
  (instance $request-handler (export "handle" (func $handle)))
  (export "beamline:edge/request-handler@0.1.0" (instance $request-handler)))
