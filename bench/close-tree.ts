import { randomBytes, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { Code, ConnectError } from '@connectrpc/connect';
import { devWorkload } from '../src/dev/environment.ts';
import type { Arguments } from './arguments.ts';
import type { Estate, Machine } from './estate.ts';
import type { SliceResult } from './protocol.ts';
import { reports, scenarios } from './scenarios.ts';
import { quiet } from './settle.ts';
import { median, summarise } from './statistics.ts';

/** Tasks of a tree, and how many such trees a slice may close one after the other. */
const sizes = [
  { tasks: 100, trees: 60 },
  { tasks: 1_000, trees: 12 },
  { tasks: 10_000, trees: 3 },
] as const;
const deepest = 8;
const fanOut = 3;
/** Calls in flight that have nothing to do with the trees. */
const concurrency = 4;
/** Per task, against that of the tree a tenth its size. */
const linear = 1.5;
const wantedP99 = 1.5;

interface Row {
  tasks: number;
  closeMs: number;
  settledMs: number;
  trees: number;
  idleP99: number;
  busyP99: number;
}

/** Time of a close against the size of the tree, and what it costs others; answers 1 when something was wrong. */
export async function measureCloseTree(
  machine: Machine,
  args: Arguments,
  progress: (line: string) => void,
): Promise<number> {
  const estate = await machine.startBroker('close_tree', {});
  const load = scenarios.find(({ name }) => name === 'issue-jwt')!;
  const slice = async (seconds: number): Promise<SliceResult> => {
    const { work } = await load.prepare(estate, concurrency, seconds);
    return await machine.load({ work, concurrency, seconds });
  };
  await slice(2);
  const rows: Row[] = [];
  for (const { tasks, trees } of sizes) {
    const [idle, busy]: [SliceResult[], SliceResult[]] = [[], []];
    const closed: Closed[] = [];
    for (let round = 0; round < args.rounds; round++) {
      const seconds = Math.max(3, args.seconds);
      const roots: string[] = [];
      for (let tree = 0; tree < trees; tree++) roots.push(await plantTree(estate, tasks));
      for (const table of ['tasks', 'leases']) await estate.database.query(`VACUUM ANALYZE ${table}`);
      idle.push(await slice(seconds));
      const until = performance.now() + seconds * 1_000;
      const [result, closes] = await Promise.all([slice(seconds), closeUntil(estate, roots, until)]);
      busy.push(result);
      closed.push(...closes);
      await quiet(estate);
      progress(`close-tree of ${tasks}: round ${round + 1} of ${args.rounds}, ${closes.length} closed`);
    }
    for (const { messages } of [...idle, ...busy].filter(({ errors }) => errors > 0)) {
      throw new Error(`unrelated issues failed: ${messages.join('; ')}`);
    }
    const p99 = (slices: SliceResult[]) =>
      summarise({ slices: slices.map((one) => ({ result: one, brokerCpu: 0 })), rssBytes: 0 }).p99;
    rows.push({
      tasks,
      trees: closed.length,
      closeMs: median(closed.map(({ closeMs }) => closeMs)),
      settledMs: median(closed.map(({ settledMs }) => settledMs)),
      idleP99: p99(idle),
      busyP99: p99(busy),
    });
  }
  await checkSettled(estate);
  report(rows, args.json, progress);
  return 0;
}

interface Closed {
  closeMs: number;
  settledMs: number;
}

/** One after the other, each until it is settled. While it is closed its own agent keeps asking. */
async function closeUntil(estate: Estate, roots: readonly string[], until: number): Promise<Closed[]> {
  const closed: Closed[] = [];
  await sleep(100);
  for (const taskId of roots) {
    if (performance.now() > until && closed.length > 0) {
      // Not measured, and not left behind for the next slice.
      await estate.tasks.closeTask({ requestId: randomUUID(), taskId });
      continue;
    }
    const asking = askUntilRefused(estate, taskId);
    const started = performance.now();
    await estate.tasks.closeTask({ requestId: randomUUID(), taskId });
    const closeMs = performance.now() - started;
    await estate.tasks.closeTask({ requestId: randomUUID(), taskId, wait: true }, { timeoutMs: 60_000 });
    closed.push({ closeMs, settledMs: performance.now() - started });
    await asking;
  }
  return closed;
}

async function askUntilRefused(estate: Estate, taskId: string): Promise<void> {
  for (;;) {
    try {
      await estate.credentials.issueCredential({ requestId: randomUUID(), taskId, ...reports });
    } catch (error) {
      if (ConnectError.from(error).code === Code.FailedPrecondition) return;
      throw error;
    }
    await sleep(5);
  }
}

/** By SQL: to open ten thousand tasks one by one takes longer than what is measured. Each holds one token. */
async function plantTree(estate: Estate, count: number): Promise<string> {
  const start = `${Date.now().toString(16).padStart(12, '0')}7${randomBytes(5).toString('hex')}0`;
  const id = (index: number) => `tsk_${start}${index.toString(16).padStart(8, '0')}`;
  const depths = [0];
  const parents: (string | null)[] = [null];
  for (let index = 1; index < count; index++) {
    // A spine down to the deepest level; the others spread over what has room below it.
    let parent = index <= deepest ? index - 1 : Math.floor((index - deepest - 1) / fanOut);
    if (depths[parent]! >= deepest) parent = index % deepest;
    depths.push(depths[parent]! + 1);
    parents.push(id(parent));
  }
  const ids = Array.from({ length: count }, (_, index) => id(index));
  const tools = JSON.stringify([{ tool: 'reports', tier: 'read' }]);
  const [orchestrator, agent] = [devWorkload('orchestrator'), devWorkload('agent/analyst')];
  await estate.database.query(
    `INSERT INTO tasks (tenant, task_id, root_task_id, parent_task_id, request_id, request_digest, intent, agent, opener,
      agent_workload, tools, context, opened_at, deadline)
     SELECT 'default', t.id, $3, t.parent, gen_random_uuid(), '', 'benchmark', 'analyst', $4, $5, $6::jsonb, '{}', now(),
      now() + interval '1 hour'
     FROM unnest($1::text[], $2::text[]) t(id, parent)`,
    [ids, parents, ids[0], orchestrator, agent, tools],
  );
  await estate.database.query(
    `INSERT INTO leases (tenant, task_id, lease_id, request_id, agent, workload, tool, tier, provider, handle, state,
      revocation_kind, issued_at, expires_at, settle_at, line_started_at, policy_revision, policy_rule)
     SELECT 'default', t.id, 'lse_' || replace(gen_random_uuid()::text, '-', ''), gen_random_uuid(), 'analyst', $2, 'reports',
      'read', 'jwt', '', 'active', 'immediate', now(), now() + interval '40 min', now() + interval '40 min', now(), 'bench',
      'bench'
     FROM unnest($1::text[]) t(id)`,
    [ids, agent],
  );
  return ids[0]!;
}

/** Ground truth: nothing of a closed tree is left without an outcome, and its tokens are on the feed. */
async function checkSettled(estate: Estate): Promise<void> {
  const { rows } = await estate.database.query<{ unsettled: number; untold: number }>(
    // Joined with a list of its own: the feed has no index by task, and may have a hundred thousand entries.
    `SELECT count(*) FILTER (WHERE l.state <> 'settled')::int AS unsettled, count(*) FILTER (WHERE r.task_id IS NULL)::int AS untold
     FROM tasks t JOIN leases l USING (tenant, task_id)
     LEFT JOIN (SELECT DISTINCT task_id FROM revocations) r ON r.task_id = l.task_id
     WHERE t.closed_at IS NOT NULL AND t.parent_task_id IS NOT NULL`,
  );
  const { unsettled, untold } = rows[0]!;
  if (unsettled + untold > 0) throw new Error(`${unsettled} leases are not settled, ${untold} not on the feed`);
}

function report(rows: readonly Row[], json: boolean, progress: (line: string) => void): void {
  const say = (line: string) => (json ? progress(line) : void process.stdout.write(`${line}\n`));
  for (const row of rows) {
    const { tasks, closeMs, settledMs, trees, idleP99, busyP99 } = row;
    if (json) process.stdout.write(`${JSON.stringify({ scenario: 'close-tree', ...row })}\n`);
    else {
      say(
        `close-tree  ${String(tasks).padStart(6)} tasks: closed in ${closeMs.toFixed(1)} ms, settled in ${settledMs.toFixed(0)} ms ` +
          `(${trees} trees); p99 of unrelated issues ${idleP99.toFixed(2)} ms idle, ${busyP99.toFixed(2)} ms beside it`,
      );
    }
  }
  const told = (met: boolean, text: string) => say(`${met ? 'met   ' : 'MISSED'} ${text}`);
  rows.slice(1).forEach((row, index) => {
    const smaller = rows[index]!;
    const growth = row.closeMs / row.tasks / (smaller.closeMs / smaller.tasks);
    told(
      growth <= linear,
      `time per task at ${row.tasks} against ${smaller.tasks}: ${growth.toFixed(2)} (wanted ≤ ${linear})`,
    );
  });
  for (const { tasks, idleP99, busyP99 } of rows) {
    const ratio = busyP99 / idleP99;
    told(
      ratio <= wantedP99,
      `p99 of unrelated issues beside closes of ${tasks}: ${ratio.toFixed(2)} × idle (wanted ≤ ${wantedP99})`,
    );
  }
}
