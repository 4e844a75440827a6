import { parseArgs } from 'node:util';
import { findVault } from '../src/dev/vault-binary.ts';
import { scenarios } from './scenarios.ts';

export interface Arguments {
  scenarios: ReadonlySet<string>;
  concurrency: number[];
  /** Measured time of each scenario at each concurrency. */
  seconds: number;
  /** Slices that the seconds are cut into; slices of different scenarios alternate. */
  rounds: number;
  openLeases: number[];
  /** What a closed task holds. */
  leases: number[];
  json: boolean;
  dir: string | undefined;
  profileDir: string | undefined;
  targetCore: boolean;
  /** Broker and load in sessions of their own. */
  sessions: boolean;
  /** The Vault server to measure with, when there is one. */
  vault: string | undefined;
}

/** Needs no broker: measured by itself. */
export const decideScenario = 'decide';
/** Measures the program, not calls: by itself as well, on a broker of its own. */
export const replayScenario = 'replay';
/** From a signal to the death of what it concerns: events on a schedule, not calls in flight. */
export const signalScenario = 'signal-settle';
/** Times what a target loses, on a broker with a Vault of its own. */
export const settleVaultScenario = 'settle-vault';
/** Has references of its own: the same calls while nothing is closed. */
export const closeTreeScenario = 'close-tree';
const names = [
  ...new Set(scenarios.map(({ name }) => name)),
  decideScenario,
  replayScenario,
  signalScenario,
  settleVaultScenario,
  closeTreeScenario,
];
/** Only where there is a Vault server. */
const vaultScenarios = ['issue-vault', settleVaultScenario];

export const usage = `npm run bench -- <scenario> … [options]

  <scenario>              ${names.join(', ')}, or all
  --concurrency 1,8,64    calls in flight
  --seconds 5             measured time of each point
  --rounds 5              slices that the time is cut into; scenarios take turns, slice by slice
  --open-leases 100,100000  (issue-jwt) one broker for each number of open leases, taking turns
  --leases 1,10,100,1000  (settle-vault) leases of the task that is closed
  --json                  one JSON object per point on stdout
  --dir <folder>          where the database goes; the disk decides what a commit costs (default: the temporary folder)
  --target-core           the target's server, and Vault, have the last core to themselves and everything else keeps off it
                          (Linux), as if it were another machine; else all of them share the processor
  --sessions              broker and load each in a session of its own, as services are: where Linux shares the processor out by
                          session (sched_autogroup), they and this program have one share together otherwise, and each
                          of the database's processes has one to itself
  --cpu-prof <folder>     write a CPU profile of the broker there

echo and commit are always measured beside what was asked for: the ratios are to the same run's. decide is measured first,
and alone, without a broker; then replay: policy replay of 100,000 decisions that a broker has recorded; then signal-settle:
100 signals a second, each to the death of the credential that it concerns, for --seconds; then settle-vault: how long a
target keeps the logins of a closed task, against Vault told directly; close-tree: trees of 100, 1,000 and 10,000 tasks closed
beside unrelated issues. issue-vault and settle-vault need a Vault server
(\`npm run vault\` builds one); all leaves them out without one.`;

export class UsageError extends Error {}

export function parseArguments(argv: readonly string[]): Arguments | 'help' {
  const { values, positionals } = parse(argv);
  if (values.help) return 'help';
  const vault = findVault(process.env);
  const everything = names.filter((name) => 'binary' in vault || !vaultScenarios.includes(name));
  const asked = positionals.includes('all') ? everything : positionals;
  if (asked.length === 0) throw new UsageError(`say what to measure: ${names.join(', ')} or all`);
  const unknown = asked.find((name) => !names.includes(name));
  if (unknown !== undefined) throw new UsageError(`there is no scenario ${unknown}: choose ${names.join(', ')} or all`);
  if ('missing' in vault && asked.some((name) => vaultScenarios.includes(name))) throw new UsageError(vault.missing);
  const openLeases =
    values['open-leases'] === undefined ? [] : numbers('open-leases', values['open-leases'], 1_000_000, 0);
  if (openLeases.length > 0 && asked.some((name) => name !== 'issue-jwt')) {
    throw new UsageError('--open-leases goes with the scenario issue-jwt alone');
  }
  return {
    scenarios: new Set(['echo', 'commit', ...asked]),
    concurrency: numbers('concurrency', values.concurrency, 256),
    seconds: numbers('seconds', values.seconds, 600)[0]!,
    rounds: numbers('rounds', values.rounds, 100)[0]!,
    openLeases,
    leases: numbers('leases', values.leases, 10_000),
    json: values.json,
    dir: values.dir,
    profileDir: values['cpu-prof'],
    targetCore: values['target-core'],
    sessions: values.sessions,
    vault: 'binary' in vault ? vault.binary : undefined,
  };
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        concurrency: { type: 'string', default: '1,8,64' },
        seconds: { type: 'string', default: '5' },
        rounds: { type: 'string', default: '5' },
        'open-leases': { type: 'string' },
        leases: { type: 'string', default: '1,10,100,1000' },
        json: { type: 'boolean', default: false },
        dir: { type: 'string' },
        'cpu-prof': { type: 'string' },
        'target-core': { type: 'boolean', default: false },
        sessions: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function numbers(option: string, text: string, max: number, min = 1): number[] {
  const list = text.split(',').map(Number);
  if (list.some((value) => !Number.isInteger(value) || value < min || value > max)) {
    throw new UsageError(`--${option} takes whole numbers from ${min} to ${max}`);
  }
  return list;
}
