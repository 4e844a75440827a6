import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { effectOf, withCallEnd, type CallEndOptions } from '../call-options.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function callEnd(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'end',
    summary: 'Record what became of a tool call',
    examples: [
      [
        'leasehold call end cal_0198f1c2a4b57d3e8f60718293a4b5c6 --outcome succeeded --rows 12 --object table:public.orders',
        'with its effect',
      ],
      [
        'leasehold call end cal_0198f1c2a4b57d3e8f60718293a4b5c6 --outcome failed --error "timed out"',
        'when it failed',
      ],
    ],
  });
  withCallEnd(command.argument('<call>', 'call identifier', identifier('cal')));
  withRequestId(command).action(
    async (callId: string, options: RemoteOptions & CallEndOptions & { requestId?: string }) => {
      const remote = await import('../remote.ts');
      const answer = await remote.connect(options).call(remote.ToolCallService.method.endToolCall, {
        requestId: options.requestId ?? randomUUID(),
        callId,
        outcome: remote.callOutcomes[options.outcome],
        error: options.error ?? '',
        effect: effectOf(options),
      });
      if (options.json === true) remote.jsonLine(remote.EndToolCallResponseSchema, answer);
      else remote.showCall(remote.required(answer.call));
    },
  );
}
