// Gives the script that is to be pushed the lock of the workspace's, read from
// standard input, if their code is the same: a push of the same code then changes
// nothing, and the workspace does not lock the same dependencies anew.
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';

const { content, lock } = JSON.parse(readFileSync(0, 'utf8'));
const script = 'f/ServiceNow/get_token';
if (lock && content === readFileSync(`${script}.go`, 'utf8')) {
  writeFileSync(`${script}.script.lock`, lock);
  appendFileSync(`${script}.script.yaml`, `lock: '!inline ${script}.script.lock'\n`);
}
