// Makes filter.wasm of filter.js: the engine, the program, and its start carried out beforehand.
import { readFile, writeFile } from 'node:fs/promises';

import { componentize } from '@bytecodealliance/componentize-js';

const { component } = await componentize(await readFile('filter.js', 'utf8'), {
  // Relative to the working folder, and a copy: the package takes no path that leads out of it.
  witPath: 'wit',
  worldName: 'request-filter',
  // What this filter has no use for; 'http' and 'fetch-event' no filter may have.
  disableFeatures: ['clocks', 'fetch-event', 'http', 'random', 'stdio'],
});
await writeFile('filter.wasm', component);
console.log(`filter.wasm: ${(component.length / 1048576).toFixed(1)} MiB`);
