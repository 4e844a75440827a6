import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function callGet(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'get',
    summary: 'Show a recorded tool call, and who vouches for each part',
    examples: [['leasehold call get cal_0198f1c2a4b57d3e8f60718293a4b5c6', 'all that is known of one call']],
  });
  command
    .argument('<call>', 'call identifier', identifier('cal'))
    .action(async (callId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      const answer = await remote.connect(options).call(remote.ToolCallService.method.getToolCall, { callId });
      if (options.json === true) remote.jsonLine(remote.GetToolCallResponseSchema, answer);
      else remote.showCall(remote.required(answer.call));
    });
}
