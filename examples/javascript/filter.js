// Sends what belongs to a beta to another upstream, and answers its health check by itself.
//
// The names are those of wit/edge.wit in camel case. Bytes are bytes: a header's value need not be text.
const text = new TextDecoder();
const bytes = new TextEncoder();

let calls = 0;

export const requestHandler = {
  handle(request) {
    // Always 1: each request gets the engine as its start left it.
    calls += 1;
    request.set('x-calls', bytes.encode(String(calls)));

    if (request.path() === '/health') {
      const headers = [{ name: 'content-type', value: bytes.encode('text/plain') }];
      return { tag: 'respond', val: { status: 200, headers, body: bytes.encode('well\n') } };
    }
    const beta = request.get('x-beta');
    if (beta !== undefined && text.decode(beta) === 'on') {
      return { tag: 'route', val: { upstream: 'beta' } };
    }
    return { tag: 'next' };
  },
};
