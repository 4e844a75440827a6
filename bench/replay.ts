import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Arguments } from './arguments.ts';
import type { Estate, Machine } from './estate.ts';
import { scenarios } from './scenarios.ts';
import { median } from './statistics.ts';

const wanted = 100_000;
const targetMs = 10_000;
/** Short, because each slice has tasks of its own, which the program has to get and keep as well. */
const making = { concurrency: 64, seconds: 2 };
const main = path.join(import.meta.dirname, '..', 'src', 'main.ts');

interface Replayed {
  decided: number;
  same: number;
  groups: { difference: string; count: number }[];
}

/**
 * `policy replay` of 100,000 decisions: issued by a real broker, recorded in its database, streamed to the program and
 * decided there again, from the start of the program to its end. Gives the exit code.
 */
export async function measureReplay(
  machine: Machine,
  args: Arguments,
  progress: (line: string) => void,
): Promise<number> {
  const dir = await mkdtemp(path.join(args.dir ?? tmpdir(), 'leasehold-bench-replay-'));
  try {
    const estate = await machine.startBroker('replay', {});
    const recorded = await record(machine, estate, progress);
    const candidate = await candidateOf(estate, dir);
    const tokenFile = path.join(dir, 'token');
    await writeFile(tokenFile, await estate.mint('auditor'), { mode: 0o600 });
    const times: number[] = [];
    for (let round = 0; round < args.rounds; round++) {
      const start = performance.now();
      const result = await replay(estate, candidate, tokenFile);
      times.push(performance.now() - start);
      check(result, recorded);
      progress(`replay ${round + 1} of ${args.rounds}: ${(times.at(-1)! / 1_000).toFixed(1)} s`);
    }
    // The first one finds nothing in any cache.
    const [firstMs, medianMs] = [times[0]!, median(times)];
    const print = (line: string) => void process.stdout.write(`${line}\n`);
    if (args.json) print(JSON.stringify({ scenario: 'replay', decisions: recorded, firstMs, medianMs }));
    else print(`replay: ${recorded} decisions, first ${firstMs.toFixed(0)} ms, median ${medianMs.toFixed(0)} ms`);
    const scaled = (firstMs * wanted) / recorded;
    const line = `${scaled < targetMs ? 'met   ' : 'MISSED'} replay of ${wanted} decisions, ms: ${scaled.toFixed(0)} (wanted < ${targetMs})`;
    if (args.json) progress(line);
    else print(line);
    return scaled < targetMs ? 0 : 1;
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** The number of decisions that the database holds in the end. */
async function record(machine: Machine, estate: Estate, progress: (line: string) => void): Promise<number> {
  const issue = scenarios.find(({ name }) => name === 'issue-jwt')!;
  for (;;) {
    const { rows } = await estate.database.query<{ count: number }>(
      `SELECT count(*)::int AS count FROM audit_events WHERE kind = 'decision.made'`,
    );
    const { count } = rows[0]!;
    progress(`${count} of ${wanted} decisions are recorded`);
    if (count >= wanted) {
      await estate.database.query('ANALYZE');
      return count;
    }
    const { work } = await issue.prepare(estate, making.concurrency, making.seconds);
    const { errors, messages } = await machine.load({ work, ...making });
    if (errors > 0) throw new Error(`decisions could not be recorded: ${messages.join('; ')}`);
  }
}

/** The estate's own policy, with one rule changed that every recorded decision meets. */
async function candidateOf(estate: Estate, dir: string): Promise<string> {
  const directory = path.join(dir, `candidate-${randomUUID()}`);
  await cp(estate.policyDir, directory, { recursive: true });
  const file = path.join(directory, 'analyst.yaml');
  const text = await readFile(file, 'utf8');
  const changed = text.replace('ttl: 10m', 'ttl: 9m');
  if (changed === text) throw new Error('the candidate does not differ from what runs');
  await writeFile(file, changed);
  return directory;
}

async function replay(estate: Estate, candidate: string, tokenFile: string): Promise<Replayed> {
  const child = spawn(
    process.execPath,
    [main, 'policy', 'replay', '--candidate', candidate, '--since', '1d', '--json'],
    {
      env: { ...process.env, LEASEHOLD_SERVER: estate.httpUrl, LEASEHOLD_TOKEN_FILE: tokenFile },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  const chunks: Buffer[] = [];
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0) throw new Error(`policy replay ended with ${code}`);
  return JSON.parse(Buffer.concat(chunks).toString()) as Replayed;
}

/** What was measured is a replay of everything that was recorded, and one that finds what differs. */
function check({ decided, same, groups }: Replayed, recorded: number): void {
  const shorter = groups.find(({ difference }) => difference === 'shorter_life')?.count ?? 0;
  if (decided !== recorded || same + shorter !== decided || shorter === 0) {
    throw new Error(`${recorded} decisions are recorded, ${decided} were replayed, ${shorter} found to differ`);
  }
}
