import { expect, test } from 'vitest';
import type { PolicyRevision } from '../../src/domain/policy.ts';
import { createSignalBoard } from '../../src/domain/signals/board.ts';
import { withSignals } from '../../src/domain/signals/facts.ts';
import { createSignalReevaluator } from '../../src/domain/signals/reevaluation.ts';
import { createSignals } from '../../src/domain/signals/signals.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import { agent, policy, rule, tool } from '../policy/support.ts';
import { insertedTask, leaseOf, newId, storageFor, rows, taskOf, writeOf } from '../support/storage.ts';

const { database, storage } = await storageFor('sigqueue');

const clock = { now: Date.now };
const watching = compilePolicy([
  agent('a'),
  tool('t'),
  tool('u'),
  policy('p', [
    rule('all', 'allow', { tools: ['t', 'u'] }),
    rule('gone', 'deny', { tools: ['t'], when: 'signals.agent("owner_left")' }),
  ]),
]);

function replica(revision: PolicyRevision, stopped: string[]) {
  const source = { tenants: ['default'], current: () => revision, lastError: () => undefined };
  const board = createSignalBoard({
    store: storage.signals,
    now: Date.now,
    monotonic: () => performance.now(),
    staleAfter: 700,
  });
  const facts = withSignals(storage.facts, board);
  const emit = (name: string, fields: object) => {
    if (name === 'lease.stopped') stopped.push((fields as { leaseId: string }).leaseId);
  };
  const { signalReevaluation: store } = storage;
  return {
    signals: createSignals({
      clock,
      newId,
      policy: source,
      store: storage.signals,
      board,
      maxInForce: 1_000,
      kick: () => undefined,
      emit,
    }),
    board,
    tick: createSignalReevaluator({
      clock,
      newId,
      policy: source,
      store,
      board,
      facts,
      kickSettler: () => undefined,
      emit,
    }).tick,
  };
}

const report = (signals: ReturnType<typeof replica>['signals'], requestId: string) =>
  signals.record({
    tenant: 'default',
    source: 'test',
    reportedBy: 'test',
    requestId,
    digest: requestId,
    drafts: [
      { subject: { kind: 'agent', name: 'a' }, kind: 'owner_left', value: 100, reason: '', expiresAt: undefined },
    ],
  });

test('2,400 leases of one agent are gone through in bounded batches, by two replicas at once, each stopped once', async () => {
  const parent = taskOf({
    agent: 'a',
    tools: [
      { tool: 't', tier: 'read' },
      { tool: 'u', tier: 'read' },
    ],
  });
  const task = insertedTask(await storage.tasks.insert(parent, []));
  const leases = Array.from({ length: 2_400 }, (_, index) =>
    leaseOf(task, { agent: 'a', tool: index % 2 === 0 ? 't' : 'u' }),
  );
  await Promise.all(leases.map((lease) => storage.writer.insert(writeOf(task, lease))));
  const stopped: string[] = [];
  const [one, two] = [replica(watching, stopped), replica(watching, stopped)];
  await report(one.signals, 'first');
  while ((await Promise.all([one.tick(), two.tick()])).some(Boolean));
  // The tool whose rules read no signals keeps all of its leases.
  expect(stopped).toHaveLength(1_200);
  expect(new Set(stopped).size).toBe(1_200);
  const state = await rows(
    database.url,
    `SELECT tool, state, settle_cause, count(*)::int AS n FROM leases GROUP BY 1, 2, 3 ORDER BY 1`,
  );
  expect(state).toEqual([
    { tool: 't', state: 'settling', settle_cause: 'signal', n: 1_200 },
    { tool: 'u', state: 'active', settle_cause: null, n: 1_200 },
  ]);
  const [found] = await rows(
    database.url,
    `SELECT (SELECT count(DISTINCT lease_id)::int FROM revocations) AS feed,
       (SELECT count(*)::int FROM audit_events WHERE kind = 'decision.made') AS events,
       (SELECT count(*)::int FROM signal_reevaluations WHERE pass > 0) AS waiting`,
  );
  expect(found).toEqual({ feed: 1_200, events: 1_200, waiting: 1 });
});

test('a revision without rules about signals reads no lease for them, and its queue is worked off all the same', async () => {
  const plain = replica(compilePolicy([agent('a'), tool('t'), policy('p', [rule('all', 'allow')])]), []);
  await report(plain.signals, 'second');
  while (await plain.tick());
  const waiting = await rows(database.url, 'SELECT pass FROM signal_reevaluations WHERE pass = 0');
  expect(waiting).toEqual([]);
});

test('a board follows what any replica writes, late commits included, and forgets what is cleared', async () => {
  const [here, there] = [replica(watching, []), replica(watching, [])];
  const about = [{ kind: 'agent', name: 'a' } as const];
  expect(await there.board.about('default', about, Date.now())).toHaveLength(1);
  const before = await there.board.about('default', about, Date.now());
  await report(here.signals, 'third');
  await there.board.refresh();
  const after = await there.board.about('default', about, Date.now());
  expect(after[0]!.signalId).not.toBe(before[0]!.signalId);
  expect(await there.board.about('other', about, Date.now())).toEqual([]);
  await here.signals.record({
    tenant: 'default',
    source: 'test',
    reportedBy: 'test',
    requestId: 'over',
    digest: 'over',
    drafts: [{ subject: about[0]!, kind: 'owner_left', value: 0, reason: '', expiresAt: undefined, clear: true }],
  });
  await there.board.refresh();
  expect(await there.board.about('default', about, Date.now())).toEqual([]);
  expect(there.board.count('default', Date.now())).toBe(0);
});

test('a board that cannot be brought up to date throws rather than guess', async () => {
  let [fails, at] = [false, 0];
  const board = createSignalBoard({
    store: {
      load: () => Promise.resolve({ signals: [], horizon: '1' }),
      tail: () =>
        fails ? Promise.reject(new Error('the database is away')) : Promise.resolve({ signals: [], horizon: '1' }),
    },
    now: Date.now,
    monotonic: () => at,
    staleAfter: 700,
  });
  await board.refresh();
  fails = true;
  at = 700;
  expect(await board.about('default', [], 0)).toEqual([]);
  at = 701;
  await expect(board.about('default', [], 0)).rejects.toThrow('away');
});
