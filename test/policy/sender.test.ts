import { expect, test } from 'vitest';
import { decide } from '../../src/domain/decision.ts';
import type { Task } from '../../src/domain/model.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import { agent, input, now, policy, rule, tool } from './support.ts';

test('a credential that policy wants bound to a key is not issued unbound (fails closed), and is when it is bound', () => {
  const bound = rule('r', 'allow', { obligations: { senderConstraint: 'dpop' } });
  const revision = compilePolicy([agent('a'), tool('t'), policy('p', [bound])]);
  const { task, access } = input();
  const whole = { ...task, tools: [access] } as unknown as Task;
  const context = { workload: undefined, now, renewal: undefined };
  expect(decide(revision, whole, access, context)).toEqual({
    effect: 'deny',
    rule: 'p/r',
    reason: 'rule p/r wants the credential bound to a key of the agent: send a proof of it as dpop_proof (RFC 9449)',
  });
  expect(decide(revision, whole, access, { ...context, boundTo: 'mtls' }).effect).toBe('deny');
  expect(decide(revision, whole, access, { ...context, boundTo: 'dpop' }).effect).toBe('allow');
});
