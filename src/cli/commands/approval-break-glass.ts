import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier, toolAndTier, type ToolAndTier } from '../values.ts';

interface Options extends RemoteOptions {
  tool: ToolAndTier;
  reason: string;
  requestId?: string;
}

export function approvalBreakGlass(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'break-glass',
    summary: 'Set policy aside in an emergency, together with a second person',
    description:
      'Opens an emergency: once a second approver agrees, policy’s refusal of one tool and tier is set aside for one task, for ' +
      '30 minutes. It is never wider than what the task asked for, and everybody is told: audit, log and webhooks.',
    examples: [
      [
        'leasehold approval break-glass tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool shop:execute --reason "INC-7: payments are down"',
        'you are the first of two',
      ],
      ['leasehold approval approve apr_0198f1c2a4b57d3e8f60718293a4b5c6', 'the second person agrees'],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--tool <tool:tier>', 'tool and tier that the task asked for', toolAndTier)
    .requiredOption('--reason <text>', 'why, in at least 10 characters; recorded and told to everybody');
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.ApprovalService.method.breakGlass, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
      tool: options.tool.tool,
      tier: remote.tierValue[options.tool.tier],
      reason: options.reason,
    });
    if (options.json === true) {
      remote.jsonLine(remote.BreakGlassResponseSchema, answer);
      return;
    }
    remote.showApproval(answer.approval);
    if (answer.approval?.state === remote.ApprovalState.PENDING) {
      remote.line(`a second person has to agree: leasehold approval approve ${answer.approval.approvalId}`);
    }
  });
}
