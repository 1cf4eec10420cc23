// What push.sh needs to know of the JSON that the wmill CLI prints, which comes on
// standard input; and arguments and run, by which it calls the CLI.
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { parse, stringify } from 'yaml';

// What an admin sets on a script in Windmill; a push resets what its file leaves out.
const settings = [
  'tag', 'envs', 'labels', 'priority', 'timeout', 'cache_ttl', 'cache_ignore_s3_path',
  'dedicated_worker', 'has_preprocessor', 'restart_unless_cancelled', 'visible_to_runner_only',
  'ws_error_handler_muted', 'delete_after_secs', 'concurrent_limit', 'concurrency_time_window_s',
  'concurrency_key', 'debounce_key', 'debounce_delay_s', 'debounce_args_to_accumulate',
  'max_total_debouncing_time', 'max_total_debounces_amount',
];

const read = () => readFileSync(0, 'utf8').trim();
const readScript = () => JSON.parse(read() || '{}'); // nothing: the workspace has none
const fail = (...lines) => {
  console.error(lines.join('\n'));
  process.exit(1);
};

const commands = {
  // lacks prints which of the fields that the script reads a resource type lacks: all
  // where there is no such type. A type may be the workspace's, the Hub's or both.
  lacks(name) {
    const fields = parse(readFileSync('servicenow.resource-type.yaml', 'utf8')).schema.required;
    const listed = JSON.parse(read());
    if (!Array.isArray(listed)) fail('resource-type list: the answer is no list. Is this a Windmill?');
    const types = listed.filter((type) => type.name === name);
    const lacking = fields.filter((field) => types.some((type) => !type.schema?.properties?.[field]));
    console.log(types.length === 0 ? 'all' : lacking.join(', ') || 'none');
  },

  // merge sets the script's file, before the push, to what an admin set on the
  // workspace's script, and its form to the resource type.
  merge(script, type) {
    const current = readScript();
    const other = current.path && current.language !== 'go';
    if (other && !current.archived && process.env.FORCE !== '1') {
      fail(`script ${script}: there is another one, in ${current.language}; it is left as it is.`,
        'Archive it in Windmill, or push over it with FORCE=1.');
    }
    const file = `${script}.script.yaml`;
    const next = parse(readFileSync(file, 'utf8'));
    next.schema.properties.snow.format = `resource-${type}`;
    if (current.path && !other) {
      for (const name of settings) {
        if (name in current) next[name] = current[name];
        else delete next[name]; // Windmill leaves out what is not set
      }
      if (current.cache_ttl) {
        console.log(`script ${script}: its cache_ttl is kept, but take it off: ` +
          'for so long Windmill answers a cached "OK" and does not run the script');
      }
      next.has_on_behalf_of = Boolean(current.on_behalf_of_email);
      if (current.content === readFileSync(`${script}.go`, 'utf8')) keepLock(script, next, current);
    }
    writeFileSync(file, stringify(next));
  },

  // lock prints locked, pending, or why the dependencies could not be locked.
  lock() {
    const { lock, lock_error_logs: complaint } = readScript();
    console.log(complaint?.trim() || (lock ? 'locked' : 'pending'));
  },

  // owner prints on whose behalf the script runs, if not its caller's.
  owner() {
    console.log(readScript().on_behalf_of_email ?? '');
  },

  // arguments prints those of a job.
  arguments(resource) {
    console.log(JSON.stringify({ snow: `$res:${resource}` }));
  },

  // run runs a command of the CLI, and ends it after so many seconds.
  run(seconds, ...command) {
    const { status, error } = spawnSync(process.execPath, command, { stdio: 'inherit', timeout: seconds * 1000 });
    if (error?.code === 'ETIMEDOUT') fail(`No end after ${seconds} seconds. Look whether Windmill is up, and at Runs and Workers.`);
    if (error) fail(error.message);
    process.exit(status ?? 1);
  },
};

// keepLock keeps the lock of the same code: a push then makes a new version only if
// something else has changed, and the workspace does not lock the same dependencies anew.
function keepLock(script, next, current) {
  const same = next.description.trim() === current.description?.trim();
  if (same) next.description = current.description;
  if (current.lock) {
    writeFileSync(`${script}.script.lock`, current.lock);
    next.lock = `!inline ${script}.script.lock`;
  } else if (current.lock_error_logs && same) {
    // The CLI would call a version that failed up to date. A line's end makes it try again.
    next.description = current.description.endsWith('\n') ? current.description.trimEnd() : `${current.description}\n`;
  }
}

const [command, ...args] = process.argv.slice(2);
commands[command](...args);
