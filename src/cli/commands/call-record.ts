import type { Command } from 'commander';
import {
  callRequest,
  effectOf,
  withCall,
  withCallEnd,
  type CallEndOptions,
  type CallOptions,
} from '../call-options.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier, instant } from '../values.ts';

interface Options extends RemoteOptions, CallOptions, CallEndOptions {
  began?: number;
  ended?: number;
}

export function callRecord(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'record',
    summary: 'Record a tool call that is over',
    description:
      'Records a call in one step. Its times are then your word, where call begin and call end take the broker’s clock. ' +
      'Called by the task’s agent, or by a workload of the tool about a call that it received.',
    examples: [
      [
        'leasehold call record tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --lease lse_0198f1c2a4b57d3e8f60718293a4b5c6 --action reports.read --outcome succeeded --rows 3',
        'after the call',
      ],
    ],
  });
  withCallEnd(withCall(command.argument('<task>', 'task identifier', identifier('tsk'))))
    .option('--began <time>', 'when it began (RFC 3339); without it, now', instant)
    .option('--ended <time>', 'when it ended (RFC 3339); without it, now', instant);
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const call = await callRequest(remote, taskId, options);
    const answer = await remote.connect(options).call(remote.ToolCallService.method.recordToolCall, {
      call,
      outcome: remote.callOutcomes[options.outcome],
      error: options.error ?? '',
      effect: effectOf(options),
      ...(options.began === undefined ? {} : { startTime: remote.timestampFromMs(options.began) }),
      ...(options.ended === undefined ? {} : { endTime: remote.timestampFromMs(options.ended) }),
    });
    if (options.json === true) remote.jsonLine(remote.RecordToolCallResponseSchema, answer);
    else remote.showCall(remote.required(answer.call));
  });
}
