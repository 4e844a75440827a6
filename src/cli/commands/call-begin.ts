import type { Command } from 'commander';
import { callRequest, withCall, type CallOptions } from '../call-options.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function callBegin(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'begin',
    summary: 'Record that a tool call begins now',
    description:
      'Records that a call begins, by the broker’s clock, and prints the call: end it with leasehold call end. A call that ' +
      'has no end when its task settles is marked unfinished. What does not fit the lease or the task is recorded and raised.',
    examples: [
      [
        'leasehold call begin tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --lease lse_0198f1c2a4b57d3e8f60718293a4b5c6 --action reports.read',
        'before the call',
      ],
    ],
  });
  withCall(command.argument('<task>', 'task identifier', identifier('tsk')));
  withRequestId(command).action(async (taskId: string, options: RemoteOptions & CallOptions) => {
    const remote = await import('../remote.ts');
    const request = await callRequest(remote, taskId, options);
    const answer = await remote.connect(options).call(remote.ToolCallService.method.beginToolCall, request);
    if (options.json === true) remote.jsonLine(remote.BeginToolCallResponseSchema, answer);
    else remote.showCall(remote.required(answer.call));
  });
}
