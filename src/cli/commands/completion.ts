import { Argument, type Command } from 'commander';
import type { Shell } from '../completion.ts';
import { define } from '../define.ts';

export function completion(parent: Command): void {
  const command = define(parent, {
    name: 'completion',
    summary: 'Print a completion script for a shell',
    examples: [
      ['source <(leasehold completion bash)', 'bash, in ~/.bashrc'],
      ['source <(leasehold completion zsh)', 'zsh, in ~/.zshrc after compinit'],
      ['leasehold completion fish | source', 'fish, in ~/.config/fish/config.fish'],
    ],
  });
  command
    .addArgument(new Argument('<shell>', 'which shell').choices(['bash', 'zsh', 'fish']))
    .action(async (shell: Shell) => {
      const { completionScript } = await import('../completion.ts');
      process.stdout.write(completionScript(shell, parent));
    });
}
