// Prints what Windmill's own parser makes of a Go script: node parse.mjs main.go
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import init, { parse_go } from 'windmill-parser-wasm-go';

const wasm = createRequire(import.meta.url).resolve('windmill-parser-wasm-go/windmill_parser_wasm_bg.wasm');
await init({ module_or_path: readFileSync(wasm) });
console.log(parse_go(readFileSync(process.argv[2], 'utf8')));
