import { expect, test } from 'vitest';
import type { AuditKind } from '../../src/domain/audit.ts';
import { entriesOf } from '../../src/domain/timeline.ts';

function told(kind: string, detail: Record<string, unknown>) {
  const event = {
    tenant: 'default',
    eventId: '1',
    kind: kind as AuditKind,
    at: 0,
    actor: 'broker',
    taskId: 'tsk',
    approvalId: undefined,
    policyRule: undefined,
    detail,
  };
  return entriesOf(event).map(({ step, summary, voucher }) => [step, summary, voucher]);
}

test('an approval is told by what was asked and said', () => {
  const approval = {
    approval: 'apr_1',
    tool: 'shop',
    tier: 'write',
    arguments_digest: 'sha256:0',
    policy_revision: 'sha256:1',
  };
  expect(told('approval.voted', { ...approval, verdict: 'approve', comment: 'fine' })).toEqual([
    ['approval', 'voted shop:write verdict=approve comment=fine', 'broker_attested'],
  ]);
});

test('an event of a kind that is not known yet is told by its plain particulars, within a line', () => {
  expect(told('weather.changed', { scope: 'agent', nested: { a: 1 }, reason: 'x'.repeat(1_000) })[0]![1]).toMatch(
    /^weather\.changed scope=agent reason=x{200,300}…$/,
  );
  expect(told('weather.cleared', {})).toEqual([['change', 'weather.cleared', 'broker_attested']]);
});

test('a refusal is told once, by the decision', () => {
  expect(told('lease.denied', { tool: 'shop', tier: 'write', reason: 'no' })).toEqual([]);
  expect(
    told('decision.made', { effect: 'deny', tool: 'shop', tier: 'write', rule: '', reason: 'no rule allows it' }),
  ).toEqual([['decision', 'deny shop:write: no rule allows it', 'broker_attested']]);
});

test('particulars that are missing or of another form break nothing', () => {
  for (const kind of [
    'task.opened',
    'decision.made',
    'lease.issued',
    'lease.settled',
    'call.began',
    'call.recorded',
    'call.ended',
    'call.raised',
  ]) {
    for (const detail of [{}, { tool: 7, effect: 'x', violations: 'x', target: {}, vouching: {} }]) {
      expect(told(kind, detail).length).toBeGreaterThan(0);
    }
  }
});
