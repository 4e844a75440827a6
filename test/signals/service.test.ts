import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { refusal, sql } from '../e2e/support.ts';
import { runCli } from '../cli/run-cli.ts';
import { serveSignals, type SignalEstate } from './support.ts';

let served: SignalEstate;
beforeAll(async () => {
  served = await serveSignals('sigapi', { signals: { maxInForce: 100 } });
});
afterAll(() => served.stop());

const agent = { subject: { case: 'agent', value: 'analyst' } } as const;
const workload = (name: string) => ({ subject: { case: 'workload', value: name } }) as const;
const owner = { subject: agent, kind: 'owner_left' };

describe('a report', () => {
  test('that is sent again changes nothing; the same name for other signals is a mistake', async () => {
    const requestId = randomUUID();
    const signals = [{ subject: workload('w/again'), kind: 'risk', value: 10 }];
    const first = await served.scanner.reportSignals({ requestId, signals });
    const second = await served.scanner.reportSignals({ requestId, signals });
    expect(second).toEqual(first);
    const events = await sql(
      served.estate.databaseUrl,
      `SELECT actor FROM leasehold.audit_events WHERE kind = 'signal.reported' AND detail ->> 'signal_id' = $1`,
      [first.signals[0]!.signalId],
    );
    expect(events).toEqual([{ actor: 'spiffe://dev.leasehold.test/scanner' }]);
    const other = [{ subject: workload('w/again'), kind: 'risk', value: 11 }];
    expect((await refusal(served.scanner.reportSignals({ requestId, signals: other }))).reason).toBe(
      'REQUEST_ID_REUSED',
    );
  });

  test('takes the place of what the same source said before, and not of what another says', async () => {
    const subject = workload('w/twice');
    for (const value of [30, 40]) await served.scanner.reportSignals({ signals: [{ subject, kind: 'risk', value }] });
    await served.operator.reportSignals({ signals: [{ subject, kind: 'risk', value: 20 }] });
    const { signals } = await served.operator.listSignals({ subject });
    expect(signals.map(({ value, source }) => [value, source.split('/').at(-1)])).toEqual([
      [20, 'operator'],
      [40, 'scanner'],
    ]);
    expect((await served.scanner.listSignals({ subject })).signals.map(({ value }) => value)).toEqual([40]);
  });

  test('is the newest word of its source when it arrives, though a replica whose clock is ahead took the last one', async () => {
    const subject = workload('w/clocks');
    const report = async (value: number) =>
      (await served.scanner.reportSignals({ signals: [{ subject, kind: 'risk', value }] })).signals;
    const [first] = await report(10);
    const move = `UPDATE leasehold.signals SET occurred_at = occurred_at + interval '5 s' WHERE subject = 'w/clocks'`;
    await sql(served.estate.databaseUrl, move);
    expect(await report(80)).toMatchObject([{ value: 80 }]);
    // What takes an earlier word back does not take this one.
    expect((await refusal(served.scanner.clearSignals({ signalIds: [first!.signalId] }))).reason).toBe(
      'SIGNAL_NOT_FOUND',
    );
    const [second] = (await served.scanner.listSignals({ subject })).signals;
    await served.scanner.clearSignals({ signalIds: [second!.signalId] });
    expect(await report(90)).toMatchObject([{ value: 90 }]);
    expect((await served.scanner.listSignals({ subject })).signals).toMatchObject([{ value: 90 }]);
  });

  test.each([
    ['no signal', [], 'signals'],
    ['no subject', [{ kind: 'owner_left' }], 'signals[0].subject'],
    ['a misspelt kind', [{ subject: agent, kind: 'owner_gone' }], 'signals[0].kind'],
    ['a kind with a newline', [{ subject: agent, kind: 'x_a\nb' }], 'signals[0].kind'],
    ['a risk without a score', [{ subject: agent, kind: 'risk' }], 'signals[0].value'],
    ['a score above 100', [{ subject: agent, kind: 'risk', value: 101 }], 'signals[0].value'],
    ['a score below 0', [{ subject: agent, kind: 'risk', value: -1 }], 'signals[0].value'],
    [
      'a task that is none',
      [{ subject: { subject: { case: 'taskId', value: 'x' } }, kind: 'anomaly' }],
      'signals[0].task_id',
    ],
    ['a long reason', [{ subject: agent, kind: 'anomaly', reason: 'x'.repeat(501) }], 'signals[0].reason'],
    ['an expiry in the past', [{ ...owner, expireTime: timestampFromMs(Date.now() - 1) }], 'signals[0].expire_time'],
    [
      'an expiry in ten years',
      [{ ...owner, expireTime: timestampFromMs(Date.now() + 3.2e11) }],
      'signals[0].expire_time',
    ],
    ['the same twice', [owner, owner], 'signals[1]'],
    ['too many', Array.from({ length: 101 }, (_, i) => ({ ...owner, kind: `x_${i}` })), 'signals'],
  ] as [string, Parameters<typeof served.scanner.reportSignals>[0]['signals'], string][])(
    'with %s is refused, and names the field',
    async (_what, signals, field) => {
      expect(await refusal(served.scanner.reportSignals({ signals: signals! }))).toMatchObject({
        reason: 'FIELD_INVALID',
        fields: [field],
      });
    },
  );

  test('about an agent or tool that policy does not register is refused: a misspelt one would never be met', async () => {
    for (const kind of ['agent', 'tool'] as const) {
      const subject = { subject: { case: kind, value: 'nobody' } };
      expect((await refusal(served.scanner.reportSignals({ signals: [{ subject, kind: 'anomaly' }] }))).reason).toBe(
        'NAME_UNKNOWN',
      );
    }
  });

  test('beyond the bound of signals in force is refused', async () => {
    const many = Array.from({ length: 98 }, (_, i) => ({ subject: workload(`w/${i}`), kind: 'anomaly' }));
    await served.scanner.reportSignals({ signals: many.slice(0, 90) });
    expect((await refusal(served.scanner.reportSignals({ signals: many }))).reason).toBe('RATE_LIMITED');
  });
});

describe('clearing', () => {
  test('is for operators, and for a source of its own signals; a stale name clears nothing', async () => {
    const subject = workload('w/clear');
    const [theirs] = (await served.operator.reportSignals({ signals: [{ subject, kind: 'anomaly' }] })).signals;
    const [mine] = (await served.scanner.reportSignals({ signals: [{ subject, kind: 'anomaly' }] })).signals;
    expect((await refusal(served.scanner.clearSignals({ signalIds: [theirs!.signalId] }))).reason).toBe(
      'SIGNAL_NOT_FOUND',
    );
    const [newer] = (await served.scanner.reportSignals({ signals: [{ subject, kind: 'anomaly', value: 5 }] })).signals;
    expect((await refusal(served.scanner.clearSignals({ signalIds: [mine!.signalId] }))).reason).toBe(
      'SIGNAL_NOT_FOUND',
    );
    const { signals } = await served.operator.clearSignals({ signalIds: [newer!.signalId, theirs!.signalId] });
    expect(signals.every(({ clearTime }) => clearTime !== undefined)).toBe(true);
    expect((await served.operator.listSignals({ subject })).signals).toEqual([]);
    expect((await served.operator.listSignals({ subject, past: true })).signals).toHaveLength(2);
  });
});

test('the list comes in pages', async () => {
  const signals = ['a', 'b', 'c'].map((letter) => ({ subject: agent, kind: `x_page_${letter}` }));
  await served.operator.reportSignals({ signals });
  const kinds = signals.map(({ kind }) => kind);
  const first = await served.operator.listSignals({ subject: agent, kinds, pageSize: 2 });
  const second = await served.operator.listSignals({
    subject: agent,
    kinds,
    pageSize: 2,
    pageToken: first.nextPageToken,
  });
  expect([...first.signals, ...second.signals].map(({ kind }) => kind)).toEqual(kinds);
  expect(second.nextPageToken).toBe('');
  expect((await refusal(served.operator.listSignals({ pageToken: 'bm9uZQ' }))).fields).toEqual(['page_token']);
});

test('the command line reports, lists and clears', async () => {
  const environment = {
    LEASEHOLD_SERVER: served.estate.httpUrl,
    LEASEHOLD_TOKEN: await served.estate.mint('operator'),
  };
  const reported = await runCli(
    [
      'signal',
      'report',
      'x_drill',
      '--agent',
      'analyst',
      '--value',
      '12',
      '--reason',
      'a drill',
      '--for',
      '1h',
      '--json',
    ],
    environment,
  );
  expect(reported.code).toBe(0);
  const { signals } = JSON.parse(reported.stdout) as { signals: { signalId: string; value: number }[] };
  expect(signals).toMatchObject([{ value: 12, subject: { agent: 'analyst' } }]);
  const listed = await runCli(['signal', 'list', '--agent', 'analyst', '--kind', 'x_drill'], environment);
  expect(listed.stdout).toMatch(new RegExp(`^${signals[0]!.signalId} +agent analyst +x_drill +12 .*a drill$`, 'm'));
  const cleared = await runCli(['signal', 'clear', signals[0]!.signalId], environment);
  expect(cleared.stdout).toMatch(/cleared now/);
  expect((await runCli(['signal', 'report', 'anomaly'], environment)).code).toBe(2);
});
